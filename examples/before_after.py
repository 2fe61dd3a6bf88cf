"""Writes a picture of one frame before and after: `python before_after.py IN OUT PICTURE [--frame N]`.

Left the frame of IN, right the same frame of OUT; below each, the square with the most detail, enlarged.
"""

import argparse

import av
import cv2
import numpy as np


def read_frame(path, index):
    with av.open(path) as container:
        for i, frame in enumerate(container.decode(video=0)):
            if i == index:
                return frame.to_ndarray(format="bgr24")
    raise SystemExit(f"{path}: wanted frame {index}, the video has {i + 1}; take a smaller --frame")


def most_detailed_square(picture, side):
    """Top left corner of the square in which the picture's edges are strongest."""
    gray = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY).astype(np.float32)
    energy = cv2.boxFilter(cv2.Laplacian(gray, cv2.CV_32F) ** 2, -1, (side, side))
    half = side // 2
    _, _, _, (x, y) = cv2.minMaxLoc(energy[half:-half, half:-half])
    return x, y


def labelled(picture, text):
    strip = np.full((36, picture.shape[1], 3), 255, np.uint8)
    cv2.putText(strip, text, (8, 26), cv2.FONT_HERSHEY_SIMPLEX, 0.8, (0, 0, 0), 2, cv2.LINE_AA)
    return np.vstack([strip, picture])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before"), parser.add_argument("after"), parser.add_argument("picture")
    parser.add_argument("--frame", type=int, default=4)
    arguments = parser.parse_args()
    before, after = (read_frame(p, arguments.frame) for p in (arguments.before, arguments.after))
    width = before.shape[1] // 2
    side = min(before.shape[:2]) // 4
    x, y = most_detailed_square(after, side)

    def column(picture, text):
        whole = cv2.resize(picture, (width, picture.shape[0] // 2), interpolation=cv2.INTER_AREA)
        detail = cv2.resize(picture[y:y + side, x:x + side], (width, width), interpolation=cv2.INTER_CUBIC)
        return labelled(np.vstack([whole, detail]), text)

    sheet = np.hstack([column(before, "before"), column(after, "after")])
    if not cv2.imwrite(arguments.picture, sheet):
        raise SystemExit(f"cannot write {arguments.picture}; check that its folder exists")
    print(f"before and after: {arguments.picture}")


if __name__ == "__main__":
    main()

"""A drawing of each kind of thing, in its own box, facing right."""

from collections.abc import Callable

from pipeline.shapes.pen import (
    BEAK,
    CREAM,
    INK,
    PALETTE,
    WOOD,
    Colour,
    Pen,
    darker,
    is_dark,
    is_pale,
    lighter,
    mix,
    path,
)

GLASS: Colour = (196, 226, 236)
LAMPLIGHT: Colour = (255, 222, 130)
SLATE: Colour = (88, 84, 108)
TYRE: Colour = (56, 58, 72)
SNOW: Colour = (244, 248, 252)
SKIN: Colour = (236, 150, 150)


def _eye(colour: Colour) -> Colour:
    return CREAM if is_dark(colour) else INK


def _house(pen: Pen, colour: Colour) -> None:
    pen.rectangle(0.7, 0.1, 0.8, 0.4, darker(colour, 0.35))
    pen.rectangle(0.1, 0.42, 0.9, 1, colour)
    pen.rectangle(0.1, 0.42, 0.9, 0.5, darker(colour))
    pen.polygon([(0.5, 0), (1, 0.45), (0, 0.45)], SLATE)
    pen.polygon([(0.5, 0), (0.56, 0), (1, 0.4), (1, 0.45)], lighter(SLATE))
    pen.rectangle(0.42, 0.64, 0.6, 1, darker(WOOD), 0.03)
    pen.circle(0.56, 0.83, 0.015, LAMPLIGHT)
    for x in (0.17, 0.66):
        pen.rectangle(x, 0.57, x + 0.18, 0.77, CREAM, 0.02)
        pen.rectangle(x + 0.02, 0.59, x + 0.16, 0.75, pen.window)
        pen.rectangle(x + 0.08, 0.58, x + 0.1, 0.76, CREAM)
    pen.circle(0.5, 0.28, 0.07, CREAM)
    pen.circle(0.5, 0.28, 0.05, pen.window)


def _tree(pen: Pen, colour: Colour) -> None:
    pen.polygon([(0.45, 0.4), (0.55, 0.4), (0.6, 1), (0.4, 1)], WOOD)
    pen.polygon([(0.52, 0.5), (0.55, 0.5), (0.6, 1), (0.53, 1)], darker(WOOD))
    shade = darker(colour)
    for x, y, r in ((0.25, 0.4, 0.17), (0.74, 0.4, 0.17), (0.5, 0.42, 0.17)):
        pen.circle(x, y, r, shade)
    for x, y, r in ((0.5, 0.2, 0.2), (0.3, 0.3, 0.18), (0.7, 0.32, 0.17), (0.5, 0.36, 0.15)):
        pen.circle(x, y, r, colour)
    for x, y, r in ((0.44, 0.15, 0.1), (0.25, 0.26, 0.07)):
        pen.circle(x, y, r, lighter(colour, 0.16))


def _palm_tree(pen: Pen, colour: Colour) -> None:
    pen.blob(path(".42,1 .47,.6 .5,.28 .56,.28 .55,.65 .56,1"), WOOD)
    for y in (0.44, 0.56, 0.68, 0.8):
        pen.line([(0.48, y), (0.55, y + 0.01)], darker(WOOD), 0.012)
    leaves = (
        (0.02, 0.4, 0.2, 0.12),
        (0.98, 0.4, 0.82, 0.12),
        (0.14, 0.56, 0.22, 0.28),
        (0.86, 0.56, 0.8, 0.28),
        (0.2, 0.04, 0.32, 0.04),
        (0.8, 0.04, 0.7, 0.04),
    )
    for i, (x, y, bend_x, bend_y) in enumerate(leaves):
        leaf = darker(colour) if i in (2, 3) else colour
        root = (0.53, 0.27)
        inner = ((bend_x + x + root[0]) / 3, (bend_y + y + root[1]) / 3 + 0.07)
        pen.blob(
            [root, ((bend_x + 0.53) / 2, bend_y + 0.02), (bend_x, bend_y), (x, y), inner], leaf
        )
    for x in (0.48, 0.57):
        pen.circle(x, 0.31, 0.04, darker(WOOD, 0.4))


def _pine_tree(pen: Pen, colour: Colour) -> None:
    pen.rectangle(0.43, 0.85, 0.57, 1, WOOD)
    for top, bottom, half in ((0.4, 0.9, 0.5), (0.2, 0.64, 0.4), (0, 0.38, 0.29)):
        left, right, snow = 0.5 - half, 0.5 + half, top + 0.4 * (bottom - top)
        pen.polygon([(0.5, top), (right, bottom), (left, bottom)], colour)
        pen.polygon([(0.5, top), (right, bottom), (0.58, bottom)], darker(colour))
        pen.ellipse(left, bottom - 0.03, right, bottom + 0.03, darker(colour, 0.1))
        edge = [
            (0.5 + half * x, snow - y) for x, y in ((0.4, 0), (0.16, 0.04), (-0.1, 0), (-0.2, 0.03))
        ]
        pen.polygon([(0.5, top), *edge, (0.5 - half * 0.4, snow)], SNOW)


def _cactus(pen: Pen, colour: Colour) -> None:
    for x, y0, elbow in ((0.08, 0.3, 0.5), (0.76, 0.2, 0.42)):
        pen.rectangle(x, y0, x + 0.17, elbow + 0.1, colour, 0.055)
        pen.rectangle(min(x, 0.5), elbow, max(x + 0.17, 0.5), elbow + 0.11, colour, 0.055)
    pen.rectangle(0.36, 0, 0.64, 1.04, colour, 0.09)
    for x in (0.45, 0.55):
        pen.line([(x, 0.1), (x, 0.92)], darker(colour), 0.014)
    pen.line([(0.165, 0.37), (0.165, 0.52)], darker(colour), 0.014)
    pen.line([(0.845, 0.27), (0.845, 0.45)], darker(colour), 0.014)
    pen.circle(0.165, 0.29, 0.045, PALETTE["pink"])
    pen.circle(0.165, 0.28, 0.02, CREAM)


def _lighthouse(pen: Pen, colour: Colour) -> None:
    pen.blob(path("0,1 .1,.92 .5,.9 .9,.92 1,1"), PALETTE["gray"])
    bands = 5
    for i in range(bands):
        y0, y1 = 0.3 + 0.62 * i / bands, 0.3 + 0.62 * (i + 1) / bands
        x0, x1 = 0.27 - 0.12 * i / bands, 0.27 - 0.12 * (i + 1) / bands
        fill = CREAM if i % 2 else colour
        pen.polygon([(x0, y0), (1 - x0, y0), (1 - x1, y1), (x1, y1)], fill)
        pen.polygon([(0.66, y0), (1 - x0, y0), (1 - x1, y1), (0.68, y1)], darker(fill))
    pen.rectangle(0.3, 0.16, 0.7, 0.28, LAMPLIGHT)
    for x in (0.3, 0.49, 0.67):
        pen.rectangle(x, 0.16, x + 0.04, 0.28, SLATE)
    pen.rectangle(0.14, 0.27, 0.86, 0.31, SLATE, 0.01)
    pen.half_disc(0.2, 0, 0.8, 0.33, colour)
    pen.rectangle(0.42, 0.8, 0.6, 0.92, SLATE, 0.03)


def _tent(pen: Pen, colour: Colour) -> None:
    pen.line([(0.55, 0), (0.5, 0.06)], WOOD, 0.03)
    pen.polygon([(0.5, 0.02), (1, 1), (0, 1)], darker(colour, 0.25))
    pen.polygon([(0.5, 0.02), (0.78, 1), (0, 1)], colour)
    pen.polygon(path(".5,.02 .18,.65 .08,.85 0,1 .12,1"), lighter(colour))
    pen.polygon([(0.46, 0.3), (0.6, 1), (0.28, 1)], darker(colour, 0.7))
    pen.polygon([(0.46, 0.3), (0.28, 1), (0.22, 1), (0.3, 0.75)], CREAM)


def _umbrella(pen: Pen, colour: Colour) -> None:
    pen.rectangle(0.485, 0.03, 0.515, 1, lighter(WOOD))
    pen.half_disc(0, 0.03, 1, 0.85, colour)
    for x0, x1 in ((0.12, 0.88), (0.34, 0.66)):
        pen.half_disc(x0, 0.03, x1, 0.85, CREAM if x0 < 0.3 else colour)
    for i, fill in enumerate((colour, CREAM, colour, CREAM, colour)):
        edges = (0, 0.12, 0.34, 0.66, 0.88, 1)
        pen.half_disc(edges[i], 0.38, edges[i + 1], 0.5, darker(fill))
    pen.circle(0.5, 0.025, 0.025, CREAM)


def _snowman(pen: Pen, colour: Colour) -> None:
    shade = mix(SNOW, (140, 165, 205), 0.45)
    pen.line([(0.25, 0.5), (0.04, 0.34)], WOOD, 0.025)
    pen.line([(0.75, 0.5), (0.96, 0.36)], WOOD, 0.025)
    for y, r in ((0.76, 0.25), (0.46, 0.18)):
        pen.circle(0.5, y, r, shade)
        pen.circle(0.48, y - 0.01, r - 0.022, SNOW)
    pen.circle(0.5, 0.25, 0.13, shade)
    pen.circle(0.49, 0.245, 0.12, SNOW)
    pen.rectangle(0.34, 0, 0.66, 0.14, INK, 0.015)
    pen.rectangle(0.24, 0.12, 0.76, 0.16, INK, 0.015)
    pen.rectangle(0.34, 0.09, 0.66, 0.12, PALETTE["red"])
    pen.circle(0.42, 0.22, 0.016, INK)
    pen.circle(0.58, 0.22, 0.016, INK)
    pen.polygon([(0.5, 0.24), (0.74, 0.28), (0.5, 0.285)], BEAK)
    pen.rectangle(0.28, 0.33, 0.72, 0.385, PALETTE["red"], 0.025)
    pen.rectangle(0.56, 0.35, 0.67, 0.52, PALETTE["red"], 0.02)
    for y in (0.47, 0.57, 0.7):
        pen.circle(0.48, y, 0.016, INK)


def _car(pen: Pen, colour: Colour) -> None:
    pen.polygon([(0.18, 0.45), (0.3, 0.02), (0.68, 0.02), (0.84, 0.45)], darker(colour))
    pen.rectangle(0.3, 0, 0.68, 0.1, darker(colour), 0.05)
    pen.polygon([(0.25, 0.42), (0.34, 0.11), (0.48, 0.11), (0.48, 0.42)], pen.window)
    pen.polygon([(0.52, 0.42), (0.52, 0.11), (0.66, 0.11), (0.77, 0.42)], pen.window)
    pen.rectangle(0, 0.38, 1, 0.84, colour, 0.17)
    pen.rectangle(0.02, 0.66, 0.98, 0.84, darker(colour), 0.08)
    pen.rectangle(0.5, 0.48, 0.58, 0.53, darker(colour, 0.4))
    pen.rectangle(0.93, 0.48, 1, 0.62, LAMPLIGHT, 0.05)
    pen.rectangle(0, 0.48, 0.04, 0.62, darker(PALETTE["red"]), 0.02)
    for x in (0.23, 0.77):
        pen.circle(x, 0.79, 0.21, TYRE)
        pen.circle(x, 0.79, 0.1, PALETTE["gray"])


def _bus(pen: Pen, colour: Colour) -> None:
    pen.rectangle(0, 0, 1, 0.88, colour, 0.12)
    pen.rectangle(0, 0.55, 1, 0.63, CREAM)
    pen.rectangle(0.01, 0.74, 0.99, 0.88, darker(colour), 0.05)
    for x in (0.04, 0.22, 0.4, 0.58):
        pen.rectangle(x, 0.14, x + 0.155, 0.47, pen.window, 0.04)
    pen.rectangle(0.77, 0.14, 0.87, 0.86, pen.window, 0.03)
    pen.rectangle(0.9, 0.14, 1, 0.5, pen.window, 0.04)
    pen.rectangle(0.95, 0.64, 1, 0.72, LAMPLIGHT, 0.03)
    for x in (0.2, 0.66):
        pen.circle(x, 0.85, 0.15, TYRE)
        pen.circle(x, 0.85, 0.07, PALETTE["gray"])


def _cat(pen: Pen, colour: Colour) -> None:
    pen.line([(0.7, 0.92), (0.97, 0.85), (0.95, 0.6), (0.85, 0.5)], darker(colour, 0.1), 0.08)
    pen.blob(path(".2,.96 .24,.6 .4,.4 .6,.4 .76,.62 .8,.96"), colour)
    chest = lighter(colour, 0.3 if is_dark(colour) else 0.55)
    pen.ellipse(0.38, 0.52, 0.62, 0.9, chest)
    for x in (0.3, 0.52):
        pen.rectangle(x, 0.9, x + 0.18, 1, lighter(colour, 0.12), 0.05)
    for a, b, c in ((0.18, 0.24, 0.46), (0.82, 0.76, 0.54)):
        pen.polygon([(a, 0), (b, 0.3), (c, 0.12)], colour)
        pen.polygon([(a + (c - a) * 0.15, 0.05), (b, 0.22), (c - (c - a) * 0.3, 0.12)], SKIN)
    pen.ellipse(0.16, 0.08, 0.84, 0.54, colour)
    for x in (0.36, 0.64):
        pen.ellipse(x - 0.07, 0.24, x + 0.07, 0.36, (226, 222, 120))
        pen.ellipse(x - 0.03, 0.24, x + 0.03, 0.36, INK)
    pen.polygon([(0.45, 0.38), (0.55, 0.38), (0.5, 0.43)], SKIN)
    for x0, x1 in ((0.34, 0.06), (0.66, 0.94)):
        pen.line([(x0, 0.42), (x1, 0.38)], chest, 0.012)
        pen.line([(x0, 0.44), (x1, 0.46)], chest, 0.012)


def _dog(pen: Pen, colour: Colour) -> None:
    shade = darker(colour)
    pen.line([(0.14, 0.5), (0.05, 0.35), (0.06, 0.16)], colour, 0.09)
    for x in (0.19, 0.54):
        pen.rectangle(x, 0.6, x + 0.09, 0.98, shade, 0.04)
    pen.blob(
        path(".1,.5 .2,.42 .45,.44 .62,.34 .72,.5 .64,.74 .4,.72 .16,.74"),
        colour,
    )
    for x in (0.12, 0.61):
        pen.rectangle(x, 0.56, x + 0.1, 1, colour, 0.045)
    pen.ellipse(0.54, 0.02, 0.88, 0.46, colour)
    pen.rectangle(0.72, 0.2, 1, 0.42, lighter(colour, 0.2), 0.1)
    pen.ellipse(0.93, 0.19, 1.02, 0.3, (20, 20, 28) if is_dark(colour) else INK)
    pen.blob(path(".6,.06 .69,.08 .68,.34 .59,.44 .52,.28"), darker(colour, 0.35))
    pen.circle(0.8, 0.17, 0.035, _eye(colour))
    pen.line([(0.57, 0.44), (0.74, 0.47)], PALETTE["red"], 0.06)


def _sheep(pen: Pen, colour: Colour) -> None:
    dark = (30, 28, 36) if is_dark(colour) else (74, 66, 74)
    for x in (0.22, 0.34, 0.56, 0.67):
        pen.rectangle(x, 0.66, x + 0.07, 1, dark, 0.03)
    shade = lighter(colour, 0.1) if is_dark(colour) else darker(colour, 0.14)
    puffs = ((0.16, 0.5), (0.28, 0.66), (0.46, 0.7), (0.64, 0.66), (0.74, 0.5), (0.45, 0.5))
    for x, y in puffs:
        pen.circle(x, y + 0.02, 0.17, shade)
    for x, y in ((0.2, 0.4), (0.34, 0.28), (0.52, 0.26), (0.66, 0.36), (0.45, 0.46), (0.28, 0.5)):
        pen.circle(x, y, 0.18, colour)
    pen.circle(0.62, 0.5, 0.15, colour)
    pen.blob(path(".74,.18 .9,.2 .98,.46 .9,.58 .78,.5"), dark)
    pen.ellipse(0.62, 0.22, 0.78, 0.34, dark)
    pen.circle(0.76, 0.16, 0.1, colour)
    pen.circle(0.86, 0.34, 0.03, CREAM)


def _flower(pen: Pen, colour: Colour) -> None:
    stem = (86, 140, 78)
    pen.line([(0.52, 1), (0.48, 0.7), (0.5, 0.35)], stem, 0.045)
    pen.blob([(0.5, 0.86), (0.3, 0.82), (0.1, 0.62), (0.36, 0.66)], stem)
    pen.blob([(0.5, 0.92), (0.7, 0.86), (0.92, 0.68), (0.64, 0.72)], lighter(stem, 0.15))
    for dx, dy in ((0, -0.17), (0.24, -0.05), (0.15, 0.14), (-0.15, 0.14), (-0.24, -0.05)):
        pen.circle(0.5 + dx, 0.27 + dy, 0.125, colour)
    for dx, dy in ((0, -0.1), (0.14, -0.03), (0.09, 0.08), (-0.09, 0.08), (-0.14, -0.03)):
        pen.circle(0.5 + dx, 0.27 + dy, 0.06, darker(colour, 0.12))
    yellow = colour[0] > 220 and colour[2] < 110
    pen.circle(0.5, 0.27, 0.085, WOOD if yellow else PALETTE["yellow"])


def _boat(pen: Pen, colour: Colour) -> None:
    pen.rectangle(0.49, 0, 0.52, 0.8, WOOD)
    pen.blob(path(".54,.06 .74,.3 .92,.66 .54,.68 .56,.35"), CREAM)
    pen.polygon([(0.55, 0.38), (0.8, 0.4), (0.87, 0.52), (0.545, 0.52)], colour)
    pen.blob(path(".47,.14 .36,.36 .16,.64 .46,.68 .44,.4"), darker(CREAM, 0.1))
    pen.polygon([(0.5, 0), (0.3, 0.05), (0.5, 0.1)], colour)
    pen.blob(path("0,.73 .5,.75 1,.71 .86,.97 .5,1.02 .14,.97"), colour)
    pen.blob(path(".06,.88 .5,.88 .92,.87 .84,.98 .5,1.02 .14,.97"), darker(colour, 0.25))
    pen.line([(0.02, 0.76), (0.5, 0.79), (0.98, 0.75)], CREAM, 0.025)


def _whale(pen: Pen, colour: Colour) -> None:
    spray = (232, 244, 250)
    pen.line([(0.7, 0.36), (0.69, 0.14), (0.58, 0.04), (0.52, 0.14)], spray, 0.06)
    pen.line([(0.7, 0.36), (0.71, 0.14), (0.82, 0.04), (0.88, 0.14)], spray, 0.06)
    pen.blob(
        path(".14,.5 .02,.36 0,.2 .1,.24 .15,.34 .22,.2 .3,.2 .26,.42 .2,.52"), darker(colour, 0.12)
    )
    pen.blob(
        path(".12,.46 .26,.6 .48,.42 .72,.34 .93,.42 1,.64 .9,.88 .6,.98 .3,.92 .16,.72"), colour
    )
    pen.blob(path(".99,.68 .8,.74 .5,.8 .3,.88 .5,.97 .7,.97 .9,.88"), lighter(colour, 0.65))
    pen.circle(0.84, 0.6, 0.035, _eye(colour))
    pen.blob([(0.56, 0.74), (0.68, 0.76), (0.58, 0.95), (0.47, 0.97)], darker(colour, 0.3))


def _duck(pen: Pen, colour: Colour) -> None:
    pen.blob(path("0,.5 .2,.58 .45,.54 .66,.48 .8,.66 .74,.9 .5,1 .2,.94 .06,.76"), colour)
    pen.blob(path(".16,.66 .4,.6 .56,.68 .44,.86 .26,.84"), darker(colour, 0.14))
    pen.circle(0.68, 0.28, 0.26, colour)
    pen.rectangle(0.58, 0.36, 0.78, 0.7, colour, 0.1)
    pen.blob([(0.86, 0.24), (1, 0.34), (0.86, 0.42)], BEAK)
    pen.circle(0.74, 0.22, 0.045, INK)


def _balloon(pen: Pen, colour: Colour) -> None:
    pale = darker(colour, 0.16) if is_pale(colour) else mix(CREAM, colour, 0.12)
    for x in (0.42, 0.58):
        pen.line([(x - 0.06 if x < 0.5 else x + 0.06, 0.68), (x, 0.88)], WOOD, 0.012)
    side = path(".75,.09 1,.32 .72,.55 .3,.73")
    for half, fill in ((0.5, colour), (0.34, pale), (0.16, colour)):
        right = [(0.5 + half * x, y) for x, y in side]
        left = [(0.5 - half * x, y) for x, y in reversed(side)]
        pen.blob([(0.5, 0), *right, *left], fill)
    pen.rectangle(0.36, 0.7, 0.64, 0.745, darker(colour), 0.02)
    pen.rectangle(0.39, 0.86, 0.61, 1, WOOD, 0.03)
    pen.rectangle(0.38, 0.85, 0.62, 0.89, darker(WOOD), 0.02)


def _kite(pen: Pen, colour: Colour) -> None:
    pen.line([(0.5, 0.66), (0.38, 0.76), (0.52, 0.86), (0.4, 0.98)], darker(colour, 0.3), 0.02)
    for x, y in ((0.4, 0.78), (0.5, 0.88)):
        pen.polygon([(x, y), (x - 0.14, y - 0.04), (x - 0.14, y + 0.05)], CREAM)
        pen.polygon([(x, y), (x + 0.14, y - 0.05), (x + 0.14, y + 0.04)], CREAM)
    pen.polygon([(0.5, 0), (0, 0.27), (0.5, 0.7)], colour)
    pen.polygon([(0.5, 0), (1, 0.27), (0.5, 0.7)], darker(colour))
    pen.polygon([(0, 0.27), (0.5, 0.27), (0.5, 0.7)], lighter(colour, 0.45))
    pen.polygon([(1, 0.27), (0.5, 0.27), (0.5, 0.7)], lighter(colour, 0.25))
    pen.line([(0.5, 0.01), (0.5, 0.69)], CREAM, 0.012)
    pen.line([(0.02, 0.27), (0.98, 0.27)], CREAM, 0.012)


def _plane(pen: Pen, colour: Colour) -> None:
    pen.polygon([(0.1, 0.42), (0.02, 0), (0.12, 0), (0.28, 0.4)], darker(colour))
    pen.polygon([(0.46, 0.4), (0.38, 0.08), (0.46, 0.08), (0.66, 0.42)], darker(colour, 0.3))
    pen.blob(path(".02,.42 .3,.36 .8,.34 .98,.52 .9,.68 .6,.74 .3,.7 .08,.58"), colour)
    pen.blob(
        path(".06,.57 .5,.62 .97,.58 .9,.68 .6,.74 .3,.7"),
        PALETTE["gray"] if is_pale(colour) else CREAM,
    )
    window = SLATE if is_pale(colour) else GLASS
    for x in (0.34, 0.44, 0.54, 0.64):
        pen.circle(x, 0.48, 0.05, window)
    pen.blob(
        [(0.8, 0.38), (0.88, 0.4), (0.94, 0.49), (0.81, 0.5)],
        SLATE if is_pale(colour) else GLASS,
    )
    pen.polygon([(0.44, 0.6), (0.62, 0.6), (0.4, 1), (0.28, 1)], darker(colour))


def _flying_bird(pen: Pen, colour: Colour) -> None:
    far_wing = lighter(colour, 0.3) if is_dark(colour) else darker(colour, 0.3)
    pen.blob(path(".5,.56 .62,.26 .78,.04 .8,.3 .7,.58"), far_wing)
    pen.polygon(path(".24,.6 0,.5 .05,.66 0,.8 .28,.72"), darker(colour))
    pen.blob(path(".14,.66 .4,.52 .7,.48 .86,.5 .84,.76 .6,.9 .34,.84"), colour)
    pen.circle(0.8, 0.52, 0.19, colour)
    pen.ellipse(0.42, 0.68, 0.76, 0.88, lighter(colour, 0.45))
    pen.polygon([(0.9, 0.44), (1, 0.54), (0.9, 0.62)], BEAK)
    pen.circle(0.84, 0.46, 0.045, _eye(colour))
    near_wing = lighter(colour, 0.18) if is_dark(colour) else darker(colour)
    pen.blob(path(".66,.62 .56,.3 .34,0 .26,.24 .34,.56 .5,.7"), near_wing)


def _sitting_bird(pen: Pen, colour: Colour) -> None:
    for x in (0.46, 0.58):
        pen.line([(x, 0.84), (x, 1)], BEAK, 0.05)
    pen.polygon([(0.28, 0.58), (0, 0.8), (0.08, 0.9), (0.36, 0.74)], darker(colour, 0.3))
    pen.blob(path(".2,.68 .4,.4 .6,.2 .84,.4 .8,.7 .6,.88 .34,.84"), colour)
    pen.circle(0.7, 0.26, 0.26, colour)
    pen.ellipse(0.5, 0.46, 0.82, 0.84, lighter(colour, 0.45))
    wing = lighter(colour, 0.18) if is_dark(colour) else darker(colour)
    pen.blob(path(".18,.72 .36,.46 .56,.5 .54,.72 .36,.78"), wing)
    pen.polygon([(0.84, 0.18), (1, 0.3), (0.84, 0.38)], BEAK)
    pen.circle(0.75, 0.21, 0.055, _eye(colour))


DRAWERS: dict[str, Callable[[Pen, Colour], None]] = {
    "house": _house,
    "tree": _tree,
    "palm tree": _palm_tree,
    "pine tree": _pine_tree,
    "cactus": _cactus,
    "lighthouse": _lighthouse,
    "tent": _tent,
    "umbrella": _umbrella,
    "snowman": _snowman,
    "car": _car,
    "bus": _bus,
    "cat": _cat,
    "dog": _dog,
    "sheep": _sheep,
    "flower": _flower,
    "boat": _boat,
    "whale": _whale,
    "duck": _duck,
    "balloon": _balloon,
    "kite": _kite,
    "plane": _plane,
    "bird": _flying_bird,
    "sitting bird": _sitting_bird,
}

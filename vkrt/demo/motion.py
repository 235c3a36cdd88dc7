"""How things move, turn, stretch and bend: smooth bounded functions of time, in frames."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Bend", "Camera", "Motion", "Wave", "make_bend", "make_camera", "make_motion"]

Rng = np.random.Generator
TAU = 2 * np.pi
HALF = np.array([0.5, 0.5])


@dataclass(frozen=True)
class Wave:
    """A sum of K sines in each of D values: amplitudes and phases (K, D), periods (K,) frames."""

    amplitudes: np.ndarray
    periods: np.ndarray
    phases: np.ndarray

    def at(self, time: float) -> np.ndarray:
        """Return the values (D,) at a time in frames."""
        turns = (TAU * time / self.periods)[:, None]
        return (self.amplitudes * np.sin(turns + self.phases)).sum(0)


def make_wave(
    rng: Rng, reach: float, periods: tuple[float, float], width: int = 1, count: int = 2
) -> Wave:
    """Draw a wave whose values stay within -reach and reach; most of it in its first sine."""
    share = rng.uniform(0.5, 1, (count, width)) * np.array([1.0, 0.35, 0.2])[:count, None]
    # A second sine as wide as the first but faster would jerk.
    lengths = rng.uniform(*periods, count) * np.array([1.0, 0.6, 0.4])[:count]
    return Wave(
        reach * share / np.maximum(share.sum(0), 1), lengths, rng.uniform(0, TAU, (count, width))
    )


@dataclass(frozen=True)
class Bend:
    """A field that moves points of an object as waves run through it: K waves.

    A point p is moved by the sum of pushes[k] sin(p . slopes[k] + phases[k] + 2 pi t / periods[k]):
    pushes and slopes (K, 2) in units of the object's radius, periods (K,) frames.
    """

    pushes: np.ndarray
    slopes: np.ndarray
    phases: np.ndarray
    periods: np.ndarray

    def shift(self, points: np.ndarray, time: float) -> np.ndarray:
        """Return by how much points (N, 2) are moved at a time, (N, 2)."""
        return (
            np.sin(points @ self.slopes.T + self.phases + TAU * time / self.periods) @ self.pushes
        )

    def undo(self, points: np.ndarray, time: float) -> np.ndarray:
        """Return, closely enough for a texture, what points (N, 2) were before they were moved."""
        found = points
        for _ in range(2):
            found = points - self.shift(found, time)
        return found


def make_bend(rng: Rng, strength: float) -> Bend:
    """Draw a field; strength 0 leaves an object rigid, 0.3 makes it writhe."""
    count = 3
    slopes = rng.normal(0, 1, (count, 2))
    slopes *= (rng.uniform(1.0, 2.6, count) / np.linalg.norm(slopes, axis=1))[:, None]
    pushes = rng.normal(0, 1, (count, 2))
    size = strength * rng.uniform(0.4, 1, count) / np.linalg.norm(slopes, axis=1)
    pushes *= (size / np.linalg.norm(pushes, axis=1))[:, None]
    periods = rng.uniform(14, 60, count) * rng.choice([-1, 1], count)
    return Bend(pushes, slopes, rng.uniform(0, TAU, count), periods)


def affine(turn: float, scale: tuple[float, float], place: np.ndarray) -> np.ndarray:
    """Return the matrix (3, 3) that scales x and y, then turns (radians), then moves to place."""
    cos, sin = np.cos(turn), np.sin(turn)
    sx, sy = scale
    return np.array(
        [[cos * sx, -sin * sy, place[0]], [sin * sx, cos * sy, place[1]], [0.0, 0.0, 1.0]]
    )


@dataclass(frozen=True)
class Motion:
    """Where an object is at each time; places and radius in sides of the picture.

    Attributes:
        home: the place about which it sways.
        away: by how much a trip takes it from there at its furthest; zero without trips.
        trip: the period of the trips in frames and their phase.
        clock: by how many frames its time runs fast or slow, so that its speed varies.
        spin: radians a frame.
        turn: radians on top of that.
        growth: logarithm of its size over `radius`.
        stretch: logarithm of how much longer its own x axis is, and its y axis shorter, than that.
    """

    home: np.ndarray
    radius: float
    sway: Wave
    away: np.ndarray
    trip: tuple[float, float]
    clock: Wave
    spin: float
    turn: Wave
    growth: Wave
    stretch: Wave
    bend: Bend

    def matrix(self, time: float) -> np.ndarray:
        """Return the matrix (3, 3) from units of the object's radius to sides of the picture."""
        time = time + float(self.clock.at(time)[0])
        period, phase = self.trip
        gone = (0.5 - 0.5 * np.cos(TAU * time / period + phase)) ** 2
        place = self.home + self.sway.at(time) + gone * self.away
        turn = self.spin * time + float(self.turn.at(time)[0])
        size = self.radius * float(np.exp(self.growth.at(time)[0]))
        squeeze = float(np.exp(self.stretch.at(time)[0]))
        return affine(turn, (size * squeeze, size / squeeze), place)


def make_trip(rng: Rng, home: np.ndarray, radius: float) -> tuple[np.ndarray, tuple[float, float]]:
    """Draw a trip that takes an object out of the picture: how far, and its period and phase."""
    turn = rng.uniform(0, TAU)
    way = np.array([np.cos(turn), np.sin(turn)])
    edge = np.where(way > 0, 1 + 1.7 * radius - home, home + 1.7 * radius)
    far = (edge / np.maximum(np.abs(way), 1e-6)).min()
    # About at home at first: what is gone then cannot be asked for.
    return far * rng.uniform(1.0, 1.25) * way, (rng.uniform(22, 48), rng.normal(0, 0.7))


def make_motion(
    rng: Rng, home: np.ndarray, radius: float, upright: bool, pace: float = 1.0
) -> Motion:
    """Draw the motion of an object about its home.

    Args:
        rng: the source of randomness.
        home: (2,) x, y in sides of the picture.
        radius: in sides of the picture.
        upright: it sways, but does not turn over.
        pace: 1 as most things move, 0 standing still.
    """
    away, trip = np.zeros(2), (30.0, 0.0)
    if pace > 0 and rng.random() < 0.2:
        away, trip = make_trip(rng, home, radius)
    reach = rng.uniform(0.06, 0.4) * pace
    # The further, the slower a period, so that most move by less than 3% of the picture a frame.
    slow = float(np.clip(reach / 0.3, 0.4, 1.2))
    spinning = not upright and rng.random() < 0.5
    strength = rng.choice([0.0, 0.12, 0.25, 0.38], p=[0.25, 0.3, 0.3, 0.15]) * min(1.0, pace)
    return Motion(
        home=home,
        radius=radius,
        sway=make_wave(rng, reach, (45 * slow, 110 * slow), width=2),
        away=away,
        trip=trip,
        clock=make_wave(rng, rng.uniform(0, 5), (40, 80), count=1),
        spin=float(rng.normal(0, 0.035)) * pace if spinning else 0.0,
        turn=make_wave(rng, rng.uniform(0, 0.3 if upright else 0.8) * pace, (30, 90)),
        growth=make_wave(rng, rng.uniform(0, 0.35) * min(1.0, pace), (40, 100)),
        stretch=make_wave(rng, rng.uniform(0, 0.18) * min(1.0, pace), (24, 70)),
        bend=make_bend(rng, float(strength)),
    )


@dataclass(frozen=True)
class Camera:
    """A hand-held camera: pan (2) in sides of the picture, roll in radians, log of its zoom."""

    pan: Wave
    roll: Wave
    zoom: Wave

    def matrix(self, time: float) -> np.ndarray:
        """Return the matrix (3, 3) from the world to the picture, both in sides of the picture."""
        zoom = float(np.exp(self.zoom.at(time)[0]))
        turned = affine(float(self.roll.at(time)[0]), (zoom, zoom), np.zeros(2))
        turned[:2, 2] = HALF + self.pan.at(time) - turned[:2, :2] @ HALF
        return turned


def make_camera(rng: Rng, most: float) -> Camera:
    """Draw a camera: still in a quarter of the clips, at times panning by up to `most`."""
    still = rng.random() < 0.25
    pan = 0.0 if still else rng.choice([0.02, most]) * rng.uniform(0.3, 1)
    roll, zoom = (0.0, 0.0) if still else rng.uniform(0, 0.07, 2)
    return Camera(
        make_wave(rng, pan, (30, 90), width=2),
        make_wave(rng, roll, (40, 90)),
        make_wave(rng, zoom, (40, 110)),
    )

"""Breast phantoms: B-mode pictures with lesions whose truth is known.

For demonstrations, tests and timing only. Scatterers of a layered breast are blurred by
the point spread of a linear probe, so speckle, attenuation, shadow and enhancement come
out of the same model; nothing is traced from a patient. They look like ultrasound and
prove nothing about a model's clinical quality.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float64]

DYNAMIC_RANGE_DB = 62.0
# Scanners average looks from several angles; it tames the speckle.
COMPOUNDED_LOOKS = 3
# Echo strength against gland, in dB, by BI-RADS echo pattern.
ECHO_DB = {
    "anechoic": -48.0,
    "hypoechoic": -15.0,
    "isoechoic": -6.0,
    "hyperechoic": 5.0,
    "complex": -14.0,
}
POSTERIOR_DB = {"none": 0.0, "enhancement": 8.0, "shadowing": -20.0, "combined": 0.0}


@dataclass(frozen=True)
class PhantomLesion:
    """One lesion and what a reader should say about it, in lexicon keys.

    Position and size are in mm; depth counts from the skin, `x_mm` from the left edge.
    `calcifications` empty means: there are none.
    """

    x_mm: float
    depth_mm: float
    width_mm: float
    height_mm: float
    shape: str = "oval"
    margin: tuple[str, ...] = ("circumscribed",)
    lesion_boundary: str = "abrupt_interface"
    echo_pattern: str = "hypoechoic"
    posterior_features: str = "none"
    calcifications: tuple[str, ...] = ()
    assessment_category: str = "3"

    @property
    def orientation(self) -> str:
        """Return `parallel` when the lesion is wider than tall."""
        return "parallel" if self.width_mm >= self.height_mm else "not_parallel"


@dataclass(frozen=True)
class Phantom:
    """A B-mode picture, uint8 (rows, columns), its scale and the truth in it.

    `boxes` are half-open pixel boxes (x0, y0, x1, y1), one for each lesion.
    """

    pixels: NDArray[np.uint8]
    mm_per_pixel: float
    lesions: tuple[PhantomLesion, ...] = ()
    boxes: tuple[tuple[int, int, int, int], ...] = field(default=())


def build_phantom(
    lesions: tuple[PhantomLesion, ...] = (),
    *,
    seed: int,
    rows: int = 600,
    columns: int = 700,
    mm_per_pixel: float = 0.065,
) -> Phantom:
    """Return a simulated breast; the same seed gives the same picture."""
    random = np.random.default_rng(seed)
    tissue = _Tissue.grow(random, rows, columns, mm_per_pixel)
    boxes = [tissue.place(lesion, random) for lesion in lesions]
    return Phantom(
        pixels=tissue.scan(random),
        mm_per_pixel=mm_per_pixel,
        lesions=lesions,
        boxes=tuple(boxes),
    )


@dataclass
class _Tissue:
    """Echo strength and attenuation of a slice of breast, in dB, before the scan."""

    x_mm: Field
    y_mm: Field
    mm_per_pixel: float
    echo_db: Field
    # What lies above darkens (negative) or brightens everything below it.
    below_db: Field
    sharp_db: Field  # specular reflectors: added without speckle

    @classmethod
    def grow(
        cls, random: np.random.Generator, rows: int, columns: int, scale: float
    ) -> _Tissue:
        y, x = np.mgrid[0:rows, 0:columns].astype(np.float64) * scale
        depth = float(y[-1, 0])
        line = x[0]
        skin = 1.7 + 0.15 * _wave(random, line, 30)
        gland = depth * 0.25 + 1.7 * _wave(random, line, 16)
        retro = depth * 0.66 + 1.3 * _wave(random, line, 22)
        muscle = depth * 0.74 + 0.5 * _wave(random, line, 25)
        chest = depth * 0.94 + 0.35 * _wave(random, line, 20)

        lobules = _clouds(random, y.shape, 2.2 / scale)
        fibres = _clouds(random, y.shape, 0.9 / scale, stretch=4.0)
        echo = np.full_like(x, -15.0) + 2.0 * lobules  # subcutaneous fat
        in_gland = (y > gland) & (y < retro)
        echo = np.where(in_gland, 1.0 + 3.2 * lobules + 2.2 * fibres, echo)
        echo = np.where((y >= retro) & (y < muscle), -16.0 + 2.0 * lobules, echo)
        in_muscle = (y >= muscle) & (y < chest)
        striae = _clouds(random, y.shape, 0.35 / scale, stretch=14.0)
        echo = np.where(in_muscle, -13.0 + 5.5 * striae, echo)
        echo = np.where(y >= chest, -26.0 + 2.0 * lobules, echo)
        echo = np.where(y < skin, 3.0, echo)
        echo = np.where(y < 0.35, -6.0, echo)

        sharp = np.zeros_like(x)
        for edge, strength, width in (
            (skin, 10.0, 0.16),
            (gland, 5.0, 0.22),
            (muscle, 13.0, 0.18),
            (chest, 17.0, 0.3),
        ):
            patchy = 0.55 + 0.45 * _wave(random, line, 7)
            sharp += strength * patchy * np.exp(-(((y - edge) / width) ** 2))
        tissue = cls(x, y, scale, echo, np.zeros_like(x), sharp)
        tissue._ligaments(random, skin, gland)
        tissue._ducts(random, in_gland)
        return tissue

    def _ligaments(
        self, random: np.random.Generator, skin: Field, gland: Field
    ) -> None:
        """Cooper's ligaments: thin bright arcs through the fat, with a faint shadow."""
        line = self.x_mm[0]
        part = (self.y_mm - skin) / np.maximum(gland - skin, 1.0)
        depth = self.y_mm[:, 0]
        for start in np.arange(-4.0, float(line[-1]) + 4, 8.0):
            lean, bend = random.normal(0, 4.0), random.normal(0, 3.0)
            sway = 0.5 * _wave(random, depth, 4)[:, np.newaxis]
            centre = start + random.normal(0, 2.0) + lean * part + bend * part**2 + sway
            seen = np.clip(0.6 + 1.2 * _wave(random, depth, 5), 0, 1)[:, np.newaxis]
            inside = (part > 0.1) & (part < 1.05)
            ridge = np.exp(-(((self.x_mm - centre) / 0.19) ** 2)) * inside * seen
            self.sharp_db += random.uniform(6, 11) * ridge
        for _ in range(5):
            height = skin + (gland - skin) * random.uniform(0.2, 0.9)
            septum = height + 0.9 * _wave(random, line, 9)
            present = np.clip(1.8 * _wave(random, line, 9), 0, 1)
            ridge = np.exp(-(((self.y_mm - septum) / 0.15) ** 2)) * present
            self.sharp_db += 11.0 * ridge

    def _ducts(self, random: np.random.Generator, in_gland: NDArray[np.bool_]) -> None:
        line = self.x_mm[0]
        centre = float(self.y_mm[-1, 0]) * 0.45
        for _ in range(5):
            path = centre + random.normal(0, 3.5) + 0.8 * _wave(random, line, 8)
            wall = np.clip(1.8 * _wave(random, line, 11), 0, 1)
            tube = np.exp(-(((self.y_mm - path) / 0.45) ** 2)) * wall * in_gland
            self.echo_db -= 11.0 * tube

    def place(
        self, lesion: PhantomLesion, random: np.random.Generator
    ) -> tuple[int, int, int, int]:
        """Put a lesion in and return its half-open pixel box."""
        dx, dy = self.x_mm - lesion.x_mm, self.y_mm - lesion.depth_mm
        angle = np.arctan2(2 * dy / lesion.height_mm, 2 * dx / lesion.width_mm)
        radius = np.hypot(2 * dx / lesion.width_mm, 2 * dy / lesion.height_mm)
        outline = _outline(lesion, angle, random)
        inside_mm = (outline - radius) * min(lesion.width_mm, lesion.height_mm) / 2
        soft = 0.75 if "indistinct" in lesion.margin else 0.1
        cover = 1.0 / (1.0 + np.exp(np.clip(-inside_mm / soft * 2.2, -50, 50)))
        texture = self._inside(lesion, dx, dy, random)
        self.echo_db = self.echo_db * (1 - cover) + texture * cover
        self.sharp_db *= 1 - cover
        self._boundary(lesion, inside_mm, angle, radius, random)
        self._behind(lesion, cover)
        self._calcify(lesion, inside_mm, random)
        body = inside_mm > 0
        rows, columns = np.flatnonzero(body.any(1)), np.flatnonzero(body.any(0))
        return (
            int(columns[0]),
            int(rows[0]),
            int(columns[-1]) + 1,
            int(rows[-1]) + 1,
        )

    def _inside(
        self, lesion: PhantomLesion, dx: Field, dy: Field, random: np.random.Generator
    ) -> Field:
        level = ECHO_DB[lesion.echo_pattern]
        texture = level + 2.4 * _clouds(random, dx.shape, 1.0 / self.mm_per_pixel)
        if lesion.echo_pattern == "complex":
            cyst = _clouds(random, dx.shape, 0.22 * lesion.width_mm / self.mm_per_pixel)
            texture = np.where(cyst > 0.35, ECHO_DB["anechoic"], texture)
        if lesion.echo_pattern == "anechoic":
            # Reverberation haze under the front wall, as every real cyst shows it.
            front = (dy + lesion.height_mm / 2) / lesion.height_mm
            texture = np.maximum(texture, -30.0 - 60.0 * np.clip(front, 0, 1))
        return np.asarray(texture)

    def _boundary(
        self,
        lesion: PhantomLesion,
        inside_mm: Field,
        angle: Field,
        radius: Field,
        random: np.random.Generator,
    ) -> None:
        if lesion.lesion_boundary == "echogenic_halo":
            patchy = 0.6 + 0.4 * _clouds(random, angle.shape, 1.2 / self.mm_per_pixel)
            rim = (
                patchy
                * np.exp(-(((inside_mm + 0.8) / 0.8) ** 2))
                * (np.sin(angle) < 0.75)
            )
            self.echo_db += 9.0 * rim
        elif "circumscribed" in lesion.margin:
            # A smooth wall reflects where the beam meets it at a right angle.
            facing = np.abs(np.sin(angle)) ** 3
            self.sharp_db += 9.0 * facing * np.exp(-((inside_mm / 0.13) ** 2))
        if "spiculated" in lesion.margin:
            reach = np.exp(-np.clip(radius - 1, 0, None) / 0.5) * (inside_mm < 0.3)
            for _ in range(17):
                towards = random.uniform(-np.pi, np.pi)
                if np.sin(towards) > 0.8:
                    continue
                off = np.angle(np.exp(1j * (angle - towards))) * radius
                ray = np.exp(-((off / random.uniform(0.05, 0.1)) ** 2)) * reach
                self.echo_db -= 21.0 * ray
                side = np.exp(-(((np.abs(off) - 0.14) / 0.06) ** 2)) * reach
                self.echo_db += 7.0 * side

    def _behind(self, lesion: PhantomLesion, cover: Field) -> None:
        """Darken or brighten what lies deeper, in proportion to the path through it."""
        if lesion.posterior_features == "none":
            return
        path = np.cumsum(cover, axis=0) * self.mm_per_pixel / lesion.height_mm
        gain = POSTERIOR_DB[lesion.posterior_features]
        factor: Field | float = gain
        if lesion.posterior_features == "combined":
            left = 1.0 / (1.0 + np.exp((self.x_mm - lesion.x_mm) / 0.8))
            factor = 7.0 * left + POSTERIOR_DB["shadowing"] * (1 - left)
        beyond = np.clip(path, 0, 1) * (1 - cover)
        deeper = self.y_mm - lesion.depth_mm - lesion.height_mm / 2
        self.below_db += factor * beyond * np.exp(-np.clip(deeper, 0, None) / 28.0)

    def _calcify(
        self, lesion: PhantomLesion, inside_mm: Field, random: np.random.Generator
    ) -> None:
        reach = max(lesion.width_mm, lesion.height_mm)
        for kind in lesion.calcifications:
            for _ in range(1 if kind == "macro" else 11):
                x, y = self._spot(kind, lesion, reach, random)
                size = random.uniform(0.75, 1.0) if kind == "macro" else 0.19
                distance = np.hypot(self.x_mm - x, self.y_mm - y)
                self.sharp_db += 27.0 * np.exp(-((distance / size) ** 2))
                if kind == "macro":
                    shade = np.exp(-(((self.x_mm - x) / size) ** 4))
                    self.below_db -= 20.0 * shade * (self.y_mm > y + size)
            if kind == "intraductal":
                tube = np.exp(-(((self.y_mm - lesion.depth_mm) / 0.55) ** 2))
                along = (self.x_mm > lesion.x_mm) & (
                    self.x_mm < lesion.x_mm + 1.3 * reach
                )
                self.echo_db -= 16.0 * tube * along * (inside_mm < 0)

    @staticmethod
    def _spot(
        kind: str, lesion: PhantomLesion, reach: float, random: np.random.Generator
    ) -> tuple[float, float]:
        if kind == "intraductal":
            x = lesion.x_mm + random.uniform(0.55, 1.25) * reach
            return x, lesion.depth_mm + random.normal(0, 0.12)
        towards = random.uniform(-np.pi, np.pi)
        part = (
            random.uniform(1.3, 1.7)
            if kind == "outside_mass"
            else random.uniform(0, 0.6)
        )
        if kind == "macro":
            part = 0.2
        x = lesion.x_mm + part * np.cos(towards) * lesion.width_mm / 2
        return x, lesion.depth_mm + part * np.sin(towards) * lesion.height_mm / 2

    def scan(self, random: np.random.Generator) -> NDArray[np.uint8]:
        """Return the log-compressed envelope: what the screen of the scanner shows."""
        shape = self.echo_db.shape
        # Layers of tissue grade into each other; a knife edge is never seen in a
        # breast.
        soft = 0.12 / self.mm_per_pixel
        field = 10 ** ((_gauss(self.echo_db, soft, soft).real + self.below_db) / 20)
        focus = float(self.y_mm[-1, 0]) * 0.5
        power = np.zeros(shape)
        for _ in range(COMPOUNDED_LOOKS):
            grain = random.normal(size=shape) + 1j * random.normal(size=shape)
            look = _two_zone_blur(grain * field, self.y_mm, focus, self.mm_per_pixel)
            power += np.abs(look) ** 2 / (2 * COMPOUNDED_LOOKS)
        glints = 10 ** (self.sharp_db / 20) - 1
        specular = np.clip(glints, 0, None) * 10 ** ((self.below_db - 13.0) / 20)
        echo = np.sqrt(power) + specular * random.rayleigh(0.75, shape)
        echo += 10 ** (-50 / 20) * np.abs(random.normal(size=shape))
        # Gain compensates most of the attenuation; some is always left.
        depth = self.y_mm / self.y_mm[-1, 0]
        level = 20 * np.log10(np.maximum(echo, 1e-6)) - 11.0 * depth**2 + 2.0 * depth
        edge = np.abs(2 * self.x_mm / self.x_mm[0, -1] - 1)
        level -= (
            5.0 * np.clip(edge - 0.75, 0, None) / 0.25
        )  # fewer elements see the rim
        grey = (level + DYNAMIC_RANGE_DB - 18.0) / DYNAMIC_RANGE_DB
        curve = np.clip(grey, 0, 1) ** 1.7
        return np.asarray(np.rint(255 * curve), dtype=np.uint8)


def _outline(lesion: PhantomLesion, angle: Field, random: np.random.Generator) -> Field:
    """Return the relative radius of the outline at each angle (1 = the ellipse)."""
    outline = np.ones_like(angle)
    if lesion.shape == "irregular":
        for order in (2, 3, 5):
            strength = random.uniform(0.05, 0.12)
            outline += strength * np.sin(order * angle + random.uniform(0, 6.3))
    if "microlobulated" in lesion.margin:
        outline += 0.055 * np.sin(13 * angle + random.uniform(0, 6.3))
        outline += 0.03 * np.sin(19 * angle + random.uniform(0, 6.3))
    if "angular" in lesion.margin:
        corners = 5
        turn = (angle + random.uniform(0, 6.3)) % (2 * np.pi / corners)
        half = np.pi / corners
        polygon = np.cos(half) / np.cos(turn - half)
        outline *= 0.35 + 0.85 * polygon
    return outline


def _wave(random: np.random.Generator, line: Field, length_mm: float) -> Field:
    """Return a smooth random curve of about unit height along `line`."""
    curve = np.zeros_like(line)
    for part in (0.31, 0.53, 0.83, 1.37, 2.9):
        strength = random.uniform(0.4, 1.0) * part**0.8
        phase = random.uniform(0, 2 * np.pi)
        curve += strength * np.sin(2 * np.pi * line / (length_mm * part) + phase)
    return curve / 2.2


def _clouds(
    random: np.random.Generator,
    shape: tuple[int, ...],
    size: float,
    *,
    stretch: float = 1.0,
) -> Field:
    """Return smooth noise of unit variance with grains of `size` pixels."""
    noise = _gauss(random.normal(size=shape), size, size * stretch).real
    return np.asarray((noise - noise.mean()) / max(float(noise.std()), 1e-9))


def _gauss(image: NDArray[np.generic], sigma_y: float, sigma_x: float) -> Field:
    """Blur by a Gaussian of the given widths in pixels; real or complex in and out."""
    fy = np.fft.fftfreq(image.shape[0])[:, np.newaxis]
    fx = np.fft.fftfreq(image.shape[1])[np.newaxis, :]
    kernel = np.exp(-2 * np.pi**2 * ((sigma_y * fy) ** 2 + (sigma_x * fx) ** 2))
    single = image.astype(np.complex64)  # half the time, and 8 bits come out anyway
    return np.asarray(np.fft.ifft2(np.fft.fft2(single) * kernel.astype(np.float32)))


def _two_zone_blur(
    amplitude: NDArray[np.generic], y_mm: Field, focus: float, scale: float
) -> Field:
    """Blur by the point spread: short along the beam, wide across it off focus."""
    off = np.clip(np.abs(y_mm - focus) / focus, 0, 1)
    zones = [(0.085, 0.16), (0.105, 0.30)]
    blurred = []
    for axial, lateral in zones:
        speckle = _gauss(amplitude, axial / scale, lateral / scale)
        # Keep the mean power of white noise under this kernel at one.
        power = 4 * np.pi * (axial / scale) * (lateral / scale)
        blurred.append(speckle * np.sqrt(power))
    return np.asarray(blurred[0] * (1 - off) + blurred[1] * off)

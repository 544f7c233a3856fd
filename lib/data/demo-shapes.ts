/** A kind of object that the demo draws. Coordinates have the centre at 0, y pointing down, and a radius of about 1. */
export interface Shape {
  name: string;
  /** Signed distance to the outline: negative inside. Exact near the outline, where it serves to smooth edges. */
  distance(x: number, y: number): number;
}

type Point = readonly [x: number, y: number];

/** Signed distance to a closed polygon: distance to the nearest edge, its sign by counting crossings. */
function polygon(name: string, points: readonly Point[]): Shape {
  const xs = Float64Array.from(points, (p) => p[0]);
  const ys = Float64Array.from(points, (p) => p[1]);
  const n = points.length;
  const reach = Math.max(...points.map(([x, y]) => Math.hypot(x, y)));
  const distance = (x: number, y: number): number => {
    // Far outside a bound will do.
    const fromCircle = Math.sqrt(x * x + y * y) - reach;
    if (fromCircle > 0.1) return fromCircle;
    let nearest = Number.POSITIVE_INFINITY;
    let inside = false;
    for (let i = 0, j = n - 1; i < n; j = i++) {
      const ax = xs[i] as number;
      const ay = ys[i] as number;
      const edgeX = (xs[j] as number) - ax;
      const edgeY = (ys[j] as number) - ay;
      const toX = x - ax;
      const toY = y - ay;
      const along = Math.min(1, Math.max(0, (toX * edgeX + toY * edgeY) / (edgeX * edgeX + edgeY * edgeY)));
      const awayX = toX - edgeX * along;
      const awayY = toY - edgeY * along;
      nearest = Math.min(nearest, awayX * awayX + awayY * awayY);
      if (ay > y !== (ys[j] as number) > y && toX < (edgeX * toY) / edgeY) inside = !inside;
    }
    return inside ? -Math.sqrt(nearest) : Math.sqrt(nearest);
  };
  return { name, distance };
}

function regular(count: number, radius: (i: number) => number): Point[] {
  return Array.from({ length: count }, (_, i) => {
    const angle = (2 * Math.PI * i) / count - Math.PI / 2;
    return [radius(i) * Math.cos(angle), radius(i) * Math.sin(angle)];
  });
}

function plus(arm: number): Point[] {
  const corner: Point[] = [
    [arm, -1],
    [arm, -arm],
    [1, -arm],
  ];
  // The corner's three points turned by 0, 90, 180 and 270 degrees.
  const turns: readonly Point[] = [
    [1, 0],
    [0, 1],
    [-1, 0],
    [0, -1],
  ];
  return turns.flatMap(([c, s]) => corner.map(([x, y]): Point => [c * x - s * y, s * x + c * y]));
}

function heartCurve(count: number): Point[] {
  return Array.from({ length: count }, (_, i) => {
    const t = (2 * Math.PI * i) / count;
    const x = 16 * Math.sin(t) ** 3;
    const y = 13 * Math.cos(t) - 5 * Math.cos(2 * t) - 2 * Math.cos(3 * t) - Math.cos(4 * t);
    return [x / 16, -(y + 2.5) / 15];
  });
}

/** The classes of the demo, in the order of their category ids. */
export const SHAPES: readonly Shape[] = [
  { name: "circle", distance: (x, y) => Math.hypot(x, y) - 0.95 },
  polygon("square", [
    [-0.82, -0.82],
    [0.82, -0.82],
    [0.82, 0.82],
    [-0.82, 0.82],
  ]),
  polygon("triangle", [
    [0, -0.95],
    [0.98, 0.75],
    [-0.98, 0.75],
  ]),
  polygon(
    "star",
    regular(10, (i) => (i % 2 === 0 ? 1.05 : 0.44)),
  ),
  { name: "ring", distance: (x, y) => Math.abs(Math.hypot(x, y) - 0.74) - 0.24 },
  polygon("cross", plus(0.34)),
  polygon("heart", heartCurve(32)),
  {
    name: "crescent",
    distance: (x, y) => Math.max(Math.hypot(x, y) - 0.98, 0.8 - Math.hypot(x - 0.5, y)),
  },
];

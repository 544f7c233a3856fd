/** Metrics in Prometheus' text format, and the server that gives them out. */
import { describe, expect, test } from "bun:test";
import {
  CounterMeter,
  HistogramMeter,
  type HistogramMetric,
  type Metric,
  MetricsServer,
  type NumberMetric,
  prometheusText,
} from "../../lib/monitor";

const loss = (value: number): NumberMetric => ({
  ...{ name: "dlfs_loss", type: "gauge", help: "Losses\nof the \\ step." },
  values: [{ labels: { loss: 'a "b"\\\n', run: "x" }, value }, { value: 2 }],
});

describe("the text", () => {
  test("has help, type and values, with what is special escaped", () => {
    const none: Metric = { name: "dlfs_none", type: "gauge", help: "Nothing yet.", values: [] };
    const images: Metric = { name: "dlfs_images_total", type: "counter", help: "Images.", values: [{ value: 1e21 }] };
    expect(prometheusText([loss(0.5), none, images])).toBe(
      String.raw`# HELP dlfs_loss Losses\nof the \\ step.
# TYPE dlfs_loss gauge
dlfs_loss{loss="a \"b\"\\\n",run="x"} 0.5
dlfs_loss 2
# HELP dlfs_images_total Images.
# TYPE dlfs_images_total counter
dlfs_images_total 1e+21
`,
    );
    for (const [value, text] of [
      [NaN, "NaN"],
      [Infinity, "+Inf"],
      [-Infinity, "-Inf"],
    ] as const) {
      expect(prometheusText([loss(value)])).toContain(`run="x"} ${text}\n`);
    }
  });

  test("refuses names that Prometheus would", () => {
    expect(() => prometheusText([{ ...loss(1), name: "dlfs-loss" }])).toThrow('"dlfs-loss" cannot be a metric\'s name');
    expect(() => prometheusText([{ ...loss(1), type: "counter" }])).toThrow("end with _total");
  });
});

describe("histograms", () => {
  const seconds: HistogramMetric = {
    ...{ name: "dlfs_seconds", type: "histogram", help: "Seconds.", bounds: [0.1, 1] },
    values: [{ labels: { stage: "queue" }, counts: [2, 0, 1], sum: 7.5 }],
  };

  test("have buckets that include the ones below, with sum and count", () => {
    expect(prometheusText([seconds])).toBe(
      `# HELP dlfs_seconds Seconds.
# TYPE dlfs_seconds histogram
dlfs_seconds_bucket{stage="queue",le="0.1"} 2
dlfs_seconds_bucket{stage="queue",le="1"} 2
dlfs_seconds_bucket{stage="queue",le="+Inf"} 3
dlfs_seconds_sum{stage="queue"} 7.5
dlfs_seconds_count{stage="queue"} 3
`,
    );
  });

  test("of which parts do not fit each other are refused", () => {
    expect(() => prometheusText([{ ...seconds, bounds: [1, 0.1] }])).toThrow("expected growing bounds, got 1, 0.1");
    expect(() => prometheusText([{ ...seconds, bounds: [1] }])).toThrow("expected 2 counts, got 3");
  });
});

describe("meters", () => {
  test("count by labels, whatever order they are given in", () => {
    const meter = new CounterMeter({ name: "dlfs_requests_total", help: "Requests.", labels: ["model", "status"] });
    expect(meter.metric().values).toEqual([]);
    meter.add({ model: "a", status: "200" });
    meter.add({ status: "200", model: "a" }, 2);
    meter.add({ model: "a", status: "503" });
    expect(meter.metric()).toEqual({
      ...{ name: "dlfs_requests_total", help: "Requests.", type: "counter" },
      values: [
        { labels: { model: "a", status: "200" }, value: 3 },
        { labels: { model: "a", status: "503" }, value: 1 },
      ],
    });
    expect(() => meter.add({ model: "a", status: "200" }, -1)).toThrow("counters only grow");
  });

  test("put what they observe into the bucket whose bound it does not pass", () => {
    const options = { name: "dlfs_size", help: "Sizes.", labels: ["model"] as const, bounds: [1, 2, 4] };
    const meter = new HistogramMeter(options);
    for (const value of [0, 1, 1.5, 2, 4, 4.1, Infinity]) meter.observe({ model: "a" }, value);
    meter.observe({ model: "b" }, 3, 10);
    const read = meter.metric();
    expect(read.values).toEqual([
      { labels: { model: "a" }, counts: [2, 2, 1, 2], sum: Infinity },
      { labels: { model: "b" }, counts: [0, 0, 10, 0], sum: 30 },
    ]);
    // What was read stays as it was.
    meter.observe({ model: "b" }, 3);
    expect(read.values[1]?.counts).toEqual([0, 0, 10, 0]);
  });
});

describe("the server", () => {
  test("answers on the loopback address alone, with the figures of the moment, until it is disposed", async () => {
    let value = 1;
    const server = new MetricsServer({ port: 0, collect: () => [loss(value)] });
    expect(server.url).toMatch(/^http:\/\/127\.0\.0\.1:\d+\/metrics$/);
    const get = async () => (await fetch(server.url)).text();
    expect(await get()).toContain(" 1\n");
    value = 7;
    expect(await get()).toContain(" 7\n");
    const answer = await fetch(server.url);
    expect(answer.headers.get("Content-Type")).toBe("text/plain; version=0.0.4; charset=utf-8");
    expect((await fetch(new URL("/", server.url))).status).toBe(404);
    expect((await fetch(server.url, { method: "POST" })).status).toBe(404);
    const { port } = new URL(server.url);
    expect(() => new MetricsServer({ port: Number(port), collect: () => [] })).toThrow(
      `metrics: cannot listen on 127.0.0.1:${port}: `,
    );
    server[Symbol.dispose]();
    expect(get()).rejects.toThrow();
  });
});

/** Metrics in Prometheus' text format, and the server that gives them out. */
import { describe, expect, test } from "bun:test";
import { type Metric, MetricsServer, prometheusText } from "../../lib/monitor";

const loss = (value: number): Metric => ({
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

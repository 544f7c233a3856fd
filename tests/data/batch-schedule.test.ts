import { describe, expect, test } from "bun:test";
import { AspectRatioBatches } from "../../lib/data/batch-sampler";
import { type BatchPlace, BatchSchedule, type ScheduleOptions } from "../../lib/data/batch-schedule";
import { RepeatFactorSampler, type SampledImages, Sampler, WeightedSampler } from "../../lib/data/sampler";
import { failure } from "./fakes";

function images(length: number, firstId = 0): SampledImages {
  return {
    length,
    ids: Array.from({ length }, (_, i) => firstId + i),
    aspectRatios: Array.from({ length }, (_, i) => (i % 3 === 0 ? 0.5 : 2)),
    classes: 2,
    starts: Array.from({ length: length + 1 }, (_, i) => i),
    labels: Array.from({ length }, (_, i) => (i % 13 === 0 ? 1 : 0)),
  };
}

function schedule(changes: Partial<ScheduleOptions> = {}): BatchSchedule {
  return new BatchSchedule({ name: "Loader", data: "the data", images: images(50), seed: 1, batchSize: 4, ...changes });
}

/** The batches of a pass. */
function pass(of: BatchSchedule, epoch: number): number[][] {
  return Array.from({ length: of.length(epoch) }, (_, index) => [...of.batch({ epoch, index }).members]);
}

const kinds: [string, Partial<ScheduleOptions>][] = [
  ["shuffled", {}],
  ["in order", { shuffle: false }],
  ["repeating", { sampler: new RepeatFactorSampler({ threshold: 0.5 }) }],
  ["grouped", { batchSampler: new AspectRatioBatches() }],
];

describe.each(kinds)("ranks, %s", (_, changes) => {
  for (const dropLast of [true, false]) {
    test(`train on the same images in the same steps, whatever their number${dropLast ? "" : ", with the last ones"}`, () => {
      const whole = schedule({ ...changes, dropLast, batchSize: 12 });
      for (const ranks of [1, 2, 3, 4, 6, 12]) {
        const all = Array.from({ length: ranks }, (_, rank) =>
          schedule({ ...changes, dropLast, batchSize: 12 / ranks, rank, ranks }),
        );
        for (const epoch of [0, 1, 5]) {
          const passes = all.map((one) => pass(one, epoch));
          const expected = pass(whole, epoch);
          for (const own of passes) {
            expect(own.length).toBe(expected.length);
            expect(own.map((batch) => batch.length)).toEqual((passes[0] as number[][]).map((batch) => batch.length));
          }
          for (const [k, batch] of expected.entries()) {
            const joined = passes.flatMap((own) => own[k] as number[]);
            expect(joined.slice(0, batch.length)).toEqual(batch);
            // Fewer are added than there are ranks, from the start of the pass.
            expect(joined.length - batch.length).toBeLessThan(ranks);
            expect(joined.slice(batch.length)).toEqual(expected.flat().slice(0, joined.length - batch.length));
          }
          const states = all.map((one) => one.state({ epoch, index: 1 }));
          for (const state of states) expect(state).toEqual(whole.state({ epoch, index: 1 }));
        }
      }
    });
  }
});

describe("BatchSchedule", () => {
  test("ranks share out all images when none is to be dropped, even fewer than there are ranks", () => {
    for (const length of [3, 8, 50]) {
      const ranks = 8;
      const shares = Array.from({ length: ranks }, (_, rank) =>
        schedule({ images: images(length), rank, ranks, dropLast: false }),
      );
      const joined = shares.flatMap((one) => pass(one, 0).flat());
      expect(new Set(joined).size).toBe(length);
      expect(joined.length).toBe(Math.ceil(length / ranks) * ranks);
      // What was added says so: the others are the data set, each image once.
      const first = shares.flatMap((one) =>
        Array.from({ length: one.length(0) }, (_, index) => one.batch({ epoch: 0, index })).flatMap(
          ({ members, repeats }) => [...members].filter((_, i) => repeats[i] === 0),
        ),
      );
      expect(first.sort((a, b) => a - b)).toEqual(Array.from({ length }, (_, i) => i));
    }
  });

  test("counts how often an image came before in its pass", () => {
    const one = schedule({ sampler: new WeightedSampler({ weights: (i) => (i < 5 ? 1 : 0) }) });
    const seen = new Map<number, number>();
    for (let index = 0; index < one.length(2); index++) {
      const { members, repeats } = one.batch({ epoch: 2, index });
      for (const [i, member] of members.entries()) {
        expect(repeats[i]).toBe(seen.get(member) ?? 0);
        seen.set(member, (seen.get(member) ?? 0) + 1);
      }
    }
    expect(Math.max(...seen.values())).toBeGreaterThan(5);
  });

  test("follows passes of different lengths", () => {
    const one = schedule({ sampler: new RepeatFactorSampler({ threshold: 0.5 }), batchSize: 2 });
    const lengths = Array.from({ length: 20 }, (_, epoch) => one.length(epoch));
    expect(new Set(lengths).size).toBeGreaterThan(1);
    let place: BatchPlace = { epoch: 0, index: 0 };
    for (const [epoch, length] of lengths.entries()) {
      for (let index = 0; index < length; index++) {
        expect(place).toEqual({ epoch, index });
        expect(one.placeOf(one.state(place))).toEqual(place);
        place = one.after(place);
      }
    }
  });

  test("gives a pass again after many others", () => {
    const one = schedule();
    const first = pass(one, 0);
    for (let epoch = 1; epoch < 10; epoch++) expect(pass(one, epoch)).not.toEqual(first);
    expect(pass(one, 0)).toEqual(first);
  });

  test("takes a sampler of one's own, and says where that is wrong", async () => {
    class Own extends Sampler {
      constructor(readonly places: number[]) {
        super();
      }
      toJSON() {
        return { name: "Own", places: this.places.join() };
      }
      order() {
        return Uint32Array.from(this.places);
      }
    }
    expect(pass(schedule({ sampler: new Own([5, 3, 5, 1]) }), 7)).toEqual([[5, 3, 5, 1]]);
    const outside = await failure(() => schedule({ sampler: new Own([5, 50]) }).length(0));
    expect(outside.message).toBe("Loader: Own gave image 50, expected places below 50");
    const few = await failure(() => schedule({ sampler: new Own([5, 3, 1]) }).length(3));
    expect(few.message).toBe(
      "Loader: the data: epoch 3 has 3 images, fewer than one batch of 4; choose a smaller batch",
    );
  });

  test.each<[string, Partial<ScheduleOptions>, string]>([
    ["a rank of none", { rank: 2, ranks: 2 }, "rank must be below ranks, got rank 2 of 2"],
    ["no ranks", { ranks: 0 }, "ranks must be an integer >= 1, got 0"],
    ["a negative rank", { rank: -1, ranks: 2 }, "rank must be an integer >= 0, got -1"],
    [
      "two orders",
      { shuffle: true, sampler: new RepeatFactorSampler() },
      "shuffle and sampler are both given, expected one of them",
    ],
  ])("refuses %s", async (_, changes, message) => {
    expect((await failure(() => schedule(changes))).message).toBe(`Loader: ${message}`);
  });

  test("goes on from a state on another number of ranks, and refuses one of other batches", async () => {
    const repeat = new RepeatFactorSampler({ threshold: 0.5 });
    const base = { sampler: repeat, batchSampler: new AspectRatioBatches(), dropLast: false };
    const state = schedule({ ...base, batchSize: 2, rank: 1, ranks: 4 }).state({ epoch: 3, index: 2 });
    const place = { epoch: 3, index: 2 };
    expect(schedule({ ...base, batchSize: 8 }).placeOf(JSON.parse(JSON.stringify(state)))).toEqual(place);
    const refusals: [Partial<ScheduleOptions>, string][] = [
      [{ batchSize: 8, seed: 2 }, "seed was 1, but this loader has 2"],
      [{ batchSize: 4, ranks: 3 }, "batchSize of the 3 ranks together was 8, but this loader has 12"],
      [{ batchSize: 8, dropLast: true }, "dropLast was false, but this loader has true"],
      [
        { batchSize: 8, sampler: new RepeatFactorSampler({ threshold: 0.4 }) },
        'sampler was {"name":"RepeatFactorSampler","threshold":0.5}, but this loader has ' +
          '{"name":"RepeatFactorSampler","threshold":0.4}',
      ],
      [
        { batchSize: 8, sampler: undefined },
        'sampler was {"name":"RepeatFactorSampler","threshold":0.5}, but this loader has none',
      ],
      [{ batchSize: 8, batchSampler: undefined }, "but this loader has none"],
      [{ batchSize: 8, images: images(51) }, "images was 50, but this loader has 51"],
      [
        { batchSize: 8, images: { ...images(50), labels: Array(50).fill(0) } },
        "the images, their boxes, or their order in epoch 3 are not those of the state",
      ],
    ];
    for (const [changes, message] of refusals) {
      const error = await failure(() => schedule({ ...base, ...changes }).placeOf(state));
      expect(error.message).toContain(`Loader.restore: `);
      expect(error.message).toContain(message);
    }
    const plain = schedule().state(place);
    const other = await failure(() => schedule({ images: images(50, 1) }).placeOf(plain));
    expect(other.message).toContain("the loader has as many images as the state's, 50, but not the same ones");
    // New boxes do not change an order that does not go by them.
    expect(schedule({ images: { ...images(50), labels: Array(50).fill(0) } }).placeOf(plain)).toEqual(place);
    // A state of an earlier version.
    const { dropLast: _dropLast, fingerprint: _fingerprint, ...old } = plain;
    expect(schedule().placeOf(old)).toEqual(place);
    for (const wrong of [{ position: 99 }, { epoch: -1 }, { position: 0.5 }]) {
      expect((await failure(() => schedule().placeOf({ ...plain, ...wrong }))).message).toContain("there is no epoch");
    }
  });
});

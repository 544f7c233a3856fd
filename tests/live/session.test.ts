/** Labels and commands that enter a training: done as a whole or refused by name, written down before they are answered, once. */
import { afterEach, describe, expect, test } from "bun:test";
import { truncateSync } from "node:fs";
import type { TargetChange } from "../../lib/data";
import type { Message } from "../../lib/formats";
import { Journal, seenOf } from "../../lib/live";
import { DlfsError, ErrorCode } from "../../lib/native";
import { fakeJpeg } from "../data/fakes";
import { add, cleanUp, closeJournals, control, FakeTraining, labels, setUp } from "./session-fixture";

afterEach(cleanUp);

describe("labels", () => {
  test("are done to the store as their author's work, given to the training, written down, and answered", async () => {
    const { store, training, path, session, bus, events } = await setUp();
    const answer = session.submit(
      labels("m", [
        add,
        { action: "change", annotationId: 1, category: "dog" },
        { action: "add", category: "cat", box: [-5, 40, 10, 60], crowd: false, score: 0.5 },
      ]),
      "test",
    );
    expect(store.annotationsOf(1).length).toBe(1); // not before a step
    await session.beforeStep(41);
    expect(await answer).toEqual({ accepted: true, from: 42 });
    const [changed, added, clipped] = store.annotationsOf(1);
    expect(changed).toMatchObject({ categoryId: 7, bbox: [1, 2, 30, 20], source: "human", author: "ada" });
    expect(added).toMatchObject({
      categoryId: 7,
      bbox: [5, 6, 15, 24],
      area: 360,
      author: "ada",
      modified: 1_700_000_000_000,
    });
    expect(clipped).toMatchObject({ categoryId: 3, bbox: [0, 40, 10, 8], score: 0.5 });
    const [change] = training.changes as [TargetChange];
    expect([...change.after.labels]).toEqual([1, 1, 0]);
    expect([...change.after.boxes.subarray(0, 4)]).toEqual([1, 2, 31, 22]);
    const entry = { message: "m", author: "ada", time: 1_700_000_000_000, iteration: 41, content: { change } };
    expect(await Journal.read(path)).toEqual([entry]);
    await bus.close();
    expect(events).toMatchObject([{ kind: "accepted", id: "m", from: 42, iteration: 41 }]);
  });

  test("of boxes that somebody else has changed meanwhile are refused", async () => {
    const { store, session } = await setUp();
    const seen = seenOf(store.annotationsOf(1));
    const move = (id: string, x: number) =>
      session.submit(labels(id, [{ action: "change", annotationId: 1, box: [x, 2, 31, 22] }], { seen }), "test");
    const answers = [move("a", 3), move("b", 4)];
    await session.beforeStep(1);
    expect(await Promise.all(answers)).toEqual([
      { accepted: true, from: 2 },
      {
        accepted: false,
        reason: "seen: train/1.jpg has been changed since it was looked at: boxes now: 1, the last one by ada",
      },
    ]);
    expect(store.annotationsOf(1).map(({ bbox }) => bbox)).toEqual([[3, 2, 28, 20]]);
  });

  test("that replace all, leave the image with those alone", async () => {
    const { store, session } = await setUp();
    void session.submit(labels("m", [add], { replace: true }), "test");
    await session.beforeStep(0);
    expect(store.annotationsOf(1).map(({ categoryId }) => categoryId)).toEqual([7]);
    void session.submit(labels("n", [], { replace: true }), "test");
    await session.beforeStep(1);
    expect(store.annotationsOf(1)).toEqual([]);
  });

  test("that replace all leave boxes that are the same whose they were, and those that a model proposed to who accepts them", async () => {
    const { store, session } = await setUp();
    const proposal = {
      imageId: 1,
      sourceId: 6,
      categoryId: 7,
      bbox: [40, 2, 10, 20] as const,
      area: 200,
      isCrowd: false,
    };
    store.addAnnotations([{ ...proposal, score: 0.5, by: { source: "model", author: "m1" } }]);
    const [first, proposed] = store.annotationsOf(1);
    const same = { action: "add", category: "cat", box: [1.01, 2, 31, 22] } as const;
    const accepted = { action: "add", category: "dog", box: [40, 2, 50, 22] } as const;
    void session.submit(labels("m", [accepted, add, same], { replace: true }), "test");
    await session.beforeStep(0);
    const rows = store.annotationsOf(1);
    expect(rows.slice(0, 2)).toEqual([
      first!,
      { ...proposed!, source: "human", author: "ada", modified: 1_700_000_000_000 },
    ]);
    expect(rows.slice(2)).toMatchObject([{ bbox: [5, 6, 15, 24], author: "ada" }]);
    // Two of the same are two; a crowd is not the box that it was.
    void session.submit(labels("n", [same, same, { ...accepted, crowd: true }], { replace: true }), "test");
    await session.beforeStep(1);
    const after = store.annotationsOf(1).map(({ id, author, isCrowd }) => [id, author, isCrowd]);
    expect(after).toEqual([
      [first!.id, first!.author, false],
      [4, "ada", false],
      [5, "ada", true],
    ]);
  });

  test("sent again change nothing, in this training and in one that goes on from its journal", async () => {
    const { store, training, session, path } = await setUp();
    const answers = ["first", "again"].map(() => session.submit(labels("m", [add]), "test"));
    await session.beforeStep(3);
    expect(await Promise.all(answers)).toEqual([
      { accepted: true, from: 4 },
      { accepted: true, from: 4 },
    ]);
    expect([store.annotationsOf(1).length, training.changes.length]).toEqual([2, 1]);
    const resumed = await setUp({ path });
    const answer = resumed.session.submit(labels("m", [add]), "test");
    await resumed.session.beforeStep(9);
    expect((await answer).accepted).toBe(true);
    expect(resumed.training.changes).toEqual([]);
  });

  const outside = { ...add, box: [64, 0, 80, 10] as const };
  for (const [what, message, reason] of [
    ["an unknown image", labels("m", [add], { image: "train/9.jpg" }), 'image: "train/9.jpg" is none of "train"'],
    ["another split", labels("m", [add], { split: "val" }), 'split: expected "train", which is trained on, got "val"'],
    [
      "an unknown class",
      labels("m", [{ ...add, category: "cow" }]),
      'edits[0].category: "cow" is none of the 2 classes: cat, dog',
    ],
    [
      "a box of another image",
      labels("m", [{ action: "delete", annotationId: 99 }]),
      "edits[0].annotation_id: train/1.jpg has no box 99",
    ],
    [
      "a box outside of the image",
      labels("m", [add, outside]),
      "edits[1].box: 64, 0, 80, 10 lies outside of train/1.jpg, 64x48",
    ],
    [
      "a box deleted twice",
      labels("m", [
        { action: "delete", annotationId: 1 },
        { action: "delete", annotationId: 1 },
      ]),
      "edits[1].annotation_id",
    ],
    [
      "more boxes than there is room for",
      labels("m", [add, add, add]),
      "edits: the image would have 4 boxes, the training was started with room for 3",
    ],
  ] as const) {
    test(`of ${what} are refused by name, and nothing has changed`, async () => {
      const { store, training, session, path } = await setUp();
      const before = store.annotationsOf(1);
      const answer = session.submit(message, "test");
      await session.beforeStep(0);
      const { accepted, reason: found } = (await answer) as { accepted: boolean; reason: string };
      expect(accepted).toBe(false);
      expect(found).toStartWith(reason);
      expect(store.annotationsOf(1)).toEqual(before);
      expect(training.changes).toEqual([]);
      expect(await Journal.read(path)).toEqual([]);
      expect(session.status.refused).toBe(1);
    });
  }
});

test("labels of a file name are those of its image, and refused where several have it", async () => {
  const { store, session } = await setUp();
  const named = session.submit(labels("m", [add], { image: "2.jpg" }), "test");
  store.addImages("train", [{ sourceId: 99, fileName: "1.jpg", key: "other/1.jpg", width: 64, height: 48 }]);
  const unclear = session.submit(labels("n", [add], { image: "1.jpg" }), "test");
  await session.beforeStep(0);
  expect(await named).toEqual({ accepted: true, from: 1 });
  expect(store.annotationsOf(2).length).toBe(1);
  const reason = 'image: "1.jpg" names train/1.jpg and other/1.jpg: give the key';
  expect(await unclear).toEqual({ accepted: false, reason });
});

describe("a new image", () => {
  test("comes with its file, which goes to the data set's source, or is there already", async () => {
    const { store, training, session, source } = await setUp();
    const bytes = fakeJpeg(320, 200);
    await source.write("train/there.jpg", fakeJpeg(100, 80));
    const answers = [
      session.submit(labels("m", [add], { image: "train/new.jpg", newImage: { width: 0, height: 0, bytes } }), "test"),
      session.submit(labels("n", [], { image: "train/there.jpg", newImage: { width: 100, height: 80 } }), "test"),
    ];
    await session.beforeStep(0);
    expect((await Promise.all(answers)).map(({ accepted }) => accepted)).toEqual([true, true]);
    const added = store.images("train").slice(2);
    expect(added).toMatchObject([
      { sourceId: 21, key: "train/new.jpg", fileName: "new.jpg", width: 320, height: 200 },
      { sourceId: 22, key: "train/there.jpg", width: 100, height: 80 },
    ]);
    expect(await source.read("train/new.jpg")).toEqual(new Uint8Array(bytes));
    expect(training.changes.map(({ image, after }) => [image.key, after.labels.length])).toEqual([
      ["train/new.jpg", 1],
      ["train/there.jpg", 0],
    ]);
  });

  for (const [what, newImage, reason] of [
    ["whose file is none", { width: 0, height: 0, bytes: Uint8Array.of(1, 2, 3) }, "jpeg: not a JPEG"],
    [
      "of another size than its file",
      { width: 5, height: 5, bytes: fakeJpeg(320, 200) },
      "new_image: the file is 320x200, the message says 5x5",
    ],
    ["whose file is not there", { width: 5, height: 5 }, '"train/new.jpg" is not in the data set\'s source'],
  ] as const) {
    test(`${what} is refused`, async () => {
      const { store, session } = await setUp();
      const answer = session.submit(labels("m", [add], { image: "train/new.jpg", newImage }), "test");
      await session.beforeStep(0);
      expect((await answer) as unknown).toMatchObject({ accepted: false, reason: expect.stringContaining(reason) });
      expect(store.images("train").length).toBe(2);
    });
  }
});

describe("commands", () => {
  test("reach the training between two steps, in order", async () => {
    const { training, session, path } = await setUp();
    for (const message of [control("a", "learningRate", 0.5), control("b", "evaluate"), control("c", "save")]) {
      void session.submit(message, "test");
    }
    await session.beforeStep(7);
    expect(training.calls).toEqual(["rate 0.5", "evaluate", "save"]);
    const entries = await Journal.read(path);
    expect(entries.map(({ iteration, content }) => [iteration, content])).toEqual([
      [7, { command: "learningRate", value: 0.5 }],
      [7, { command: "evaluate" }],
      [7, { command: "save" }],
    ]);
    expect(session.beforeStep(8)).toBeUndefined(); // costs a step nothing
  });

  test("pause the steps until they go on, while labels are still taken in", async () => {
    const { training, session } = await setUp();
    void session.submit(control("a", "pause"), "test");
    let went = false;
    const step = session.beforeStep(1)!.then(() => {
      went = true;
    });
    const answer = await session.submit(labels("m", [add]), "test");
    expect(answer.accepted).toBe(true);
    expect([training.changes.length, went, session.paused]).toEqual([1, false, true]);
    void session.submit(control("b", "resume"), "test");
    await step;
    expect(session.paused).toBe(false);
  });

  test("stop a training that pauses", async () => {
    const { training, session } = await setUp();
    void session.submit(control("a", "pause"), "test");
    const step = session.beforeStep(1);
    await Bun.sleep(1);
    void session.submit(control("b", "stop"), "test");
    await step;
    expect(training.calls).toEqual(["stop"]);
  });

  test("on rates count again at their steps in a training that goes on from the journal", async () => {
    const { session, path } = await setUp();
    for (const [iteration, value] of [
      [10, 0.5],
      [20, 0.25],
      [30, 2],
    ] as const) {
      void session.submit(control(`at ${iteration}`, "learningRate", value), "test");
      await session.beforeStep(iteration);
    }
    const { training, session: resumed } = await setUp({ path });
    for (let iteration = 25; iteration <= 31; iteration++) await resumed.beforeStep(iteration);
    expect(training.calls).toEqual(["rate 0.5", "rate 0.25", "rate 2"]);
  });
});

test("a flood is refused with a reason, and each step takes in so many", async () => {
  const { session, training } = await setUp({ maxWaiting: 300 });
  const answers = Array.from({ length: 1000 }, (_, i) => session.submit(control(`${i}`, "evaluate"), "test"));
  const refused = await answers[300];
  expect(refused).toEqual({ accepted: false, reason: "300 messages wait already; try again later" });
  await session.beforeStep(0);
  expect(training.calls.length).toBe(256);
  await session.beforeStep(1);
  expect(training.calls.length).toBe(300);
  expect(session.status).toEqual({ waiting: 0, refused: 700 });
});

test("messages that a training says are none that it takes", async () => {
  const { session } = await setUp();
  const metrics: Message = { type: "metrics", value: { what: "train", iteration: 1, epoch: 0, time: 0, values: {} } };
  expect(await session.submit(metrics, "ws 1")).toEqual({
    accepted: false,
    reason: "ws 1: a training takes labels and control messages, not metrics",
  });
});

test("what waits when the training ends is answered", async () => {
  const { session } = await setUp();
  const answer = session.submit(labels("m", [add]), "test");
  await session.close();
  expect(await answer).toEqual({ accepted: false, reason: "the training has ended" });
});

test("a journal whose writer was killed within an entry goes on behind the last whole one", async () => {
  const { session, path } = await setUp();
  void session.submit(control("a", "save"), "test");
  await session.beforeStep(1);
  const whole = Bun.file(path).size;
  void session.submit(control("b", "save"), "test");
  await session.beforeStep(2);
  await closeJournals();
  truncateSync(path, whole + 11);
  await using again = await Journal.open(path);
  expect(again.entries.map(({ message }) => message)).toEqual(["a"]);
  await again.append([{ message: "c", author: "", time: 0, iteration: 3, content: { command: "stop" } }]);
  expect((await Journal.read(path)).map(({ message }) => message)).toEqual(["a", "c"]);
});

describe("a training that goes on after it stood still", () => {
  const images = (training: FakeTraining) =>
    training.changes.map(({ image, after }) => [image.key, [...after.boxes], [...after.labels]]);

  test("takes in what others have done meanwhile to images that it knows otherwise, once", async () => {
    const { store, session, path } = await setUp();
    for (const [id, image] of ["train/1.jpg", "train/2.jpg"].entries()) {
      void session.submit(labels(`m${id}`, [add], { image }), "test");
    }
    await session.beforeStep(5);
    await closeJournals();
    store.updateAnnotations([{ id: 1, bbox: [3, 4, 10, 10] }], {
      source: "human",
      author: "eve",
      time: 1_800_000_000_000,
    });

    let asked = 0;
    const again = await setUp({ path, store, resumed: true, onWaiting: () => asked++ });
    // Of several ranks, only before a step that they have agreed on.
    expect([again.session.beforeStep(4, false), again.training.changes.length, asked]).toEqual([undefined, 0, 1]);
    await again.session.beforeStep(5);
    expect(images(again.training)).toEqual([["train/1.jpg", [3, 4, 13, 14, 5, 6, 20, 30], [0, 1]]]);
    const entries = await Journal.read(path);
    expect(entries.slice(2)).toMatchObject([
      {
        message: expect.stringMatching(/^store 1 [0-9a-f]{16}$/),
        author: "eve",
        time: 1_800_000_000_000,
        iteration: 5,
      },
    ]);
    await closeJournals();
    store.updateAnnotations([{ id: 1, bbox: [3, 4, 10 + 1e-12, 10] }]); // as much as rounding does
    const third = await setUp({ path, store, resumed: true });
    expect(third.session.beforeStep(5)).toBeUndefined();
    expect(third.training.changes).toEqual([]);
  });

  test("goes on without what it has no room for, and says so", async () => {
    const { store, session, path } = await setUp();
    void session.submit(labels("m", [add]), "test");
    await session.beforeStep(5);
    await closeJournals();
    store.deleteAnnotations([1]);
    const training = new FakeTraining();
    training.change = () => {
      throw new DlfsError(ErrorCode.argument, "change of 1.jpg", "no room");
    };
    const again = await setUp({ path, store, resumed: true, training });
    expect(again.session.beforeStep(5)).toBeUndefined();
    await again.bus.close();
    const text = "train/1.jpg was changed meanwhile, and is trained on as it was: change of 1.jpg: no room";
    expect(again.events).toMatchObject([{ kind: "log", level: "warning", text }]);
  });
});

describe("what is asked between steps", () => {
  test("is done one at a time, also while the training pauses", async () => {
    const { session } = await setUp();
    const done: number[] = [];
    const ask = (i: number) =>
      session.between(async () => {
        done.push(i);
        return 10 * i;
      });
    const answers = [ask(1), ask(2)];
    expect(done).toEqual([]); // not before a step
    await session.beforeStep(1);
    expect([done, await answers[0]]).toEqual([[1], 10]);
    await session.beforeStep(2);
    expect(await answers[1]).toBe(20);
    expect(session.beforeStep(3)).toBeUndefined();
    const paused = session.submit(control("p", "pause"), "test");
    const waiting = session.beforeStep(4);
    await paused;
    expect(await ask(3)).toBe(30);
    void session.submit(control("r", "resume"), "test");
    await waiting;
  });

  test("has its failures told to whoever asked, and is refused when many wait or the training has ended", async () => {
    const { session } = await setUp();
    const ask = (work: () => Promise<unknown>) => session.between(work).catch(({ message }: Error) => message);
    const failing = ask(async () => {
      throw new Error("no room");
    });
    await session.beforeStep(1);
    expect(await failing).toBe("no room");
    const waiting = Array.from({ length: 16 }, () => ask(async () => 1));
    expect(session.between(async () => 1)).rejects.toThrow("16 such questions wait already");
    await session.close();
    expect(await Promise.all(waiting)).toEqual(new Array(16).fill("training: it has ended"));
    expect(session.between(async () => 1)).rejects.toThrow("it has ended");
  });
});

/** The boxes of an image while they are edited on the page: undo, what is written, and what others change meanwhile. */
import { describe, expect, test } from "bun:test";
import {
  BoxModel,
  fitted,
  type ServedBox,
  type ServedState,
  type Sides,
} from "../../lib/dashboard/page/editor-model.js";

const classes = ["cell", "clot"];
const served = (id: number, box: Sides, label = 0, crowd = false): ServedBox => ({ id, box, label, crowd });
const A: Sides = [10, 20, 60, 80];
const B: Sides = [100, 10, 180, 90];
const C: Sides = [5, 5, 30, 30];
const state = (boxes: readonly ServedBox[] = [served(1, A), served(2, B, 1)], seen = "s1"): ServedState => {
  return { image: { width: 200, height: 100 }, boxes, seen };
};
const boxes = (model: BoxModel) => model.boxes.map(({ box }) => box);
const pick = (model: BoxModel, at: number) => model.select(model.boxes[at]?.key ?? null);

test("boxes are kept inside the image, with an area, whichever corner comes first", () => {
  const size = { width: 200, height: 100 };
  expect(fitted([60, 80, 10.04, 20.06], size)).toEqual([10, 20.1, 60, 80]);
  expect(fitted([-20, 50, 300, 400], size)).toEqual([0, 50, 200, 100]);
  expect(fitted([250, 50, 300, 50.2], size)).toEqual([199, 50, 200, 51]);
});

describe("what is done", () => {
  test("is undone and done again, step by step, a gesture at a time", () => {
    const model = new BoxModel(state());
    expect([model.canUndo, model.dirty, model.undo()]).toEqual([false, false, false]);
    pick(model, 0);
    for (let i = 0; i < 5; i++) model.move(1, 0, "keys");
    model.change({ label: 1 });
    model.add([{ box: C, label: 0 }]);
    model.remove();
    expect(boxes(model)).toEqual([[15, 20, 65, 80], B]);
    model.undo();
    expect([boxes(model).length, model.current?.box]).toEqual([3, C]);
    model.undo();
    model.undo();
    expect([model.boxes[0]?.label, model.boxes[0]?.box]).toEqual([0, [15, 20, 65, 80]]);
    model.undo();
    expect([boxes(model), model.dirty, model.canUndo]).toEqual([[A, B], false, false]);
    for (let i = 0; i < 4; i++) expect(model.redo()).toBe(true);
    expect([boxes(model), model.canRedo, model.redo()]).toEqual([[[15, 20, 65, 80], B], false, false]);
    // What is done anew takes the place of what was undone.
    model.undo();
    pick(model, 0);
    model.change({ crowd: true });
    expect(model.canRedo).toBe(false);
  });

  test("changes nothing where there is nothing to change", () => {
    const model = new BoxModel(state());
    expect([model.move(1, 1), model.remove(), model.change({ label: 1 }), model.add([])]).toEqual([
      ...[false, false, false, false],
    ]);
    pick(model, 1);
    expect([model.change({ label: 1 }), model.move(0, 0), model.change({ box: B })]).toEqual([false, false, false]);
    expect([model.canUndo, model.dirty]).toEqual([false, false]);
  });

  test("moves a box up to the edges, as large as it was", () => {
    const model = new BoxModel(state());
    pick(model, 1);
    model.move(500, -500);
    expect(model.current?.box).toEqual([120, 0, 200, 80]);
  });

  test("is written as the edits that make the server's boxes of its own", () => {
    const model = new BoxModel(state([served(1, A), served(2, B, 1), served(3, C)]));
    pick(model, 0);
    model.change({ box: [12, 20, 60, 80], label: 1 });
    pick(model, 1);
    model.remove();
    model.change({ crowd: true });
    model.add([{ box: [50, 50, 70, 70], label: 0, score: 0.9 }]);
    model.add([{ box: [70, 50, 90, 70], label: 1, score: 0.8 }]);
    model.move(1, 0);
    expect(model.edits(classes)).toEqual([
      { action: "change", id: 1, category: "clot", box: [12, 20, 60, 80] },
      { action: "change", id: 3, crowd: true },
      { action: "delete", id: 2 },
      { action: "add", category: "cell", box: [50, 50, 70, 70], score: 0.9 },
      // What was moved is not what the model has found.
      { action: "add", category: "clot", box: [71, 50, 91, 70] },
    ]);
  });
});

describe("what was written", () => {
  test("is the server's from then on, and can still be undone", () => {
    const model = new BoxModel(state());
    pick(model, 0);
    model.remove();
    model.add([{ box: C, label: 1 }]);
    model.settle(state([served(2, B, 1), served(7, C, 1)], "s2"));
    expect([model.dirty, model.seen, model.current?.box]).toEqual([false, "s2", C]);
    model.change({ label: 0 });
    expect(model.edits(classes)).toEqual([{ action: "change", id: 7, category: "cell" }]);
    for (let i = 0; i < 3; i++) model.undo();
    expect(boxes(model)).toEqual([A, B]);
    // The deleted box has a new number when it comes back.
    expect(model.edits(classes)).toEqual([
      { action: "delete", id: 7 },
      { action: "add", category: "cell", box: A },
    ]);
  });

  test("is what the server made of it", () => {
    const model = new BoxModel(state());
    model.add([{ box: C, label: 1 }]);
    const other: Sides = [0, 0, 9, 9];
    model.settle(state([served(1, A), served(2, B, 1), served(7, C, 1), served(8, other)], "s2"));
    expect([boxes(model), model.dirty]).toEqual([[A, B, C, other], false]);
  });
});

describe("what others have changed meanwhile", () => {
  test("stays theirs, and what was changed, deleted or added here stays as it is here", () => {
    const [d, e]: Sides[] = [
      [70, 70, 90, 90],
      [150, 50, 170, 70],
    ] as [Sides, Sides];
    const model = new BoxModel(state([served(1, A), served(2, B, 1), served(3, C), served(4, d as Sides)]));
    pick(model, 0);
    model.move(2, 0);
    pick(model, 1);
    model.remove();
    model.add([{ box: e as Sides, label: 1 }]);
    // There: 1 was moved elsewhere, 2 relabelled, 3 deleted, 4 moved, 9 drawn.
    const moved: Sides = [71, 70, 91, 90];
    model.rebase(state([served(1, [0, 0, 50, 60]), served(2, B), served(4, moved), served(9, [1, 1, 9, 9])], "s2"));
    expect(boxes(model)).toEqual([[12, 20, 62, 80], moved, [1, 1, 9, 9], e as Sides]);
    expect([model.seen, model.canUndo]).toEqual(["s2", false]);
    expect(model.edits(classes)).toEqual([
      { action: "change", id: 1, box: [12, 20, 62, 80] },
      { action: "delete", id: 2 },
      { action: "add", category: "clot", box: e },
    ]);
  });

  test("that was deleted there and changed here comes back as a new box", () => {
    const model = new BoxModel(state());
    pick(model, 0);
    model.change({ label: 1 });
    model.rebase(state([served(2, B, 1)]));
    expect(model.edits(classes)).toEqual([{ action: "add", category: "clot", box: A }]);
  });

  test("is nothing where it is what was sent from here and whose answer was lost", () => {
    const model = new BoxModel(state());
    model.add([{ box: C, label: 1, score: 0.7 }]);
    pick(model, 0);
    model.remove();
    model.rebase(state([served(2, B, 1), served(7, C, 1)], "s2"));
    expect([model.dirty, boxes(model)]).toEqual([false, [B, C]]);
  });

  test("can be taken whole", () => {
    const model = new BoxModel(state());
    model.add([{ box: C, label: 1 }]);
    model.reset(state([served(2, B, 1)], "s2"));
    expect([boxes(model), model.dirty, model.canUndo, model.seen]).toEqual([[B], false, false, "s2"]);
  });
});

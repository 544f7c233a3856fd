/** A store that lacks what a journal has: what it gets back, and what is left as it is. */
import { expect, test } from "bun:test";
import { type AnnotationStore, type ImageBoxes, type ImageRecord, targetsOf } from "../../lib/data";
import { type JournalEntry, restoreStore } from "../../lib/live";
import { makeStore } from "./session-fixture";

const boxes = (...list: (readonly [number, number, number, number])[]): ImageBoxes => ({
  boxes: Float64Array.from(list.flat()),
  labels: new Int32Array(list.length).fill(1),
});
const NONE = boxes();
/** What the first image of makeStore() has. */
const CAT: ImageBoxes = { boxes: Float64Array.of(1, 2, 31, 22), labels: Int32Array.of(0) };

const record = (id: number, key: string): ImageRecord => ({
  ...{ id, sourceId: 10 * id, split: "train", fileName: key.slice(6), key, width: 64, height: 48, problem: null },
});

function entry(message: string, image: ImageRecord, before: ImageBoxes | null, after: ImageBoxes): JournalEntry {
  const change = { image, from: { epoch: 0, index: 0 }, before, after, pass: 1, weight: 1, seat: null };
  return { message, author: "ada", time: 7, iteration: 1, content: { change } };
}

const found = (store: AnnotationStore, id: number): ImageBoxes =>
  targetsOf(store.annotationsOf(id), store.image(id) as ImageRecord, (category) => store.classes().indexOf(category));
const restore = (store: AnnotationStore, ...entries: JournalEntry[]) =>
  restoreStore({ store, classes: store.classes() }, entries);

test("gets what the last changes say, crowds left as they are, and the images that came later; once", () => {
  const store = makeStore();
  store.addAnnotations([{ imageId: 1, sourceId: 9, categoryId: 3, bbox: [0, 0, 9, 9], area: 81, isCrowd: true }]);
  const [first, second, added] = [record(1, "train/1.jpg"), record(2, "train/2.jpg"), record(3, "train/new.jpg")];
  const entries = [
    entry("a", first, CAT, boxes([1, 1, 9, 9])),
    entry("b", second, NONE, boxes([5, 5, 20, 20])),
    entry("c", added, null, NONE),
    entry("d", first, boxes([1, 1, 9, 9]), boxes([2, 2, 9, 9], [3, 3, 9, 9])),
    entry("e", added, NONE, boxes([4, 4, 9, 9])),
  ];
  expect(restore(store, ...entries)).toBe(3);
  expect(found(store, 1)).toEqual(boxes([2, 2, 9, 9], [3, 3, 9, 9]));
  expect(found(store, 2)).toEqual(boxes([5, 5, 20, 20]));
  expect(found(store, 3)).toEqual(boxes([4, 4, 9, 9]));
  expect(store.image(3)).toMatchObject({ key: "train/new.jpg", sourceId: 30, width: 64, height: 48 });
  const [crowd, box] = store.annotationsOf(1);
  expect([crowd!.isCrowd, box!.source, box!.author, box!.modified]).toEqual([true, "human", "ada", 7]);
  expect(restore(store, ...entries)).toBe(0);
});

test("keeps what others have done meanwhile", () => {
  const store = makeStore();
  store.updateAnnotations([{ id: 1, bbox: [7, 7, 10, 10] }], { source: "human", author: "bob" });
  expect(restore(store, entry("a", record(1, "train/1.jpg"), CAT, NONE))).toBe(0);
  expect([...found(store, 1).boxes]).toEqual([7, 7, 17, 17]);
});

test("of images that have other ids there is as it was, and that is said", () => {
  const store = makeStore();
  store.addImages("train", [{ sourceId: 5, fileName: "other.jpg", key: "train/other.jpg", width: 64, height: 48 }]);
  const entries = [entry("a", record(1, "train/1.jpg"), CAT, NONE), entry("b", record(3, "train/new.jpg"), null, NONE)];
  expect(() => restore(store, ...entries)).toThrow(
    "live: the journal has train/new.jpg as image 3, this data set as 4: it cannot be gone on with here",
  );
  expect([found(store, 1), store.images("train").length]).toEqual([CAT, 3]);
});

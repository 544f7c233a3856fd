/** What TensorBoard's event files have: numbers and texts by step and name. */
import { readFileSync } from "node:fs";
import { decodeTfRecords } from "../../lib/formats";
import { ProtoReader } from "../../lib/formats/protobuf";

export interface EventValue {
  step: number;
  name: string;
  /** A number, or a text's. */
  value: number | string | null;
}

/** Calls `work` for each field of a message. */
function each(reader: ProtoReader, work: (field: number) => void): void {
  while (reader.next()) work(reader.field);
}

export function readEventFile(path: string): EventValue[] {
  return [...decodeTfRecords(readFileSync(path), path)].flatMap((record) => {
    const event = new ProtoReader(Uint8Array.from(record));
    let step = 0;
    const values: EventValue[] = [];
    each(event, (field) => {
      if (field === 2) step = event.int();
      if (field !== 5) return;
      const summary = event.message();
      each(summary, () => {
        const entry = summary.message();
        const found: EventValue = { step: 0, name: "", value: null };
        each(entry, (part) => {
          if (part === 1) found.name = entry.text();
          if (part === 2) found.value = entry.float();
          if (part !== 8) return;
          const tensor = entry.message();
          each(tensor, (own) => {
            if (own === 8) found.value = tensor.text();
          });
        });
        values.push(found);
      });
    });
    return values.map((value) => ({ ...value, step }));
  });
}

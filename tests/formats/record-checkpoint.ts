/**
 * Writes checkpoint-v1.dlck: run once when format version 1 was made. A new version gets a file of its own, and this one
 * stays, so that its reading stays tested.
 */
import { join } from "node:path";
import { writeCheckpoint } from "../../lib/formats/index";
import { sampleMetadata, sampleTensors } from "./sample";

await writeCheckpoint(join(import.meta.dir, "checkpoint-v1.dlck"), sampleMetadata(), sampleTensors());

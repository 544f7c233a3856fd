/**
 * Writes tests/formats/messages-v1.bin: the frames of sample-messages.ts as version 1 wrote them. Not to be run again for version 1:
 * the file is there so that what was written once stays readable.
 *
 *   bun run tests/formats/record-messages.ts
 */
import { join } from "node:path";
import { encodeMessage } from "../../lib/formats";
import { sampleMessages } from "./sample-messages";

await Bun.write(join(import.meta.dir, "messages-v1.bin"), Buffer.concat(sampleMessages.map(encodeMessage)));

import { optimizerCases } from "./cases/optimizer";
import { describeCases } from "./check";

describeCases("optimizer", optimizerCases);

import { describeCases } from "./check";
import { optimizerCases } from "./cases/optimizer";

describeCases("optimizer", optimizerCases);

import { elementwiseCases } from "./cases/elementwise";
import { describeCases } from "./check";

describeCases("elementwise operations", elementwiseCases);

import { activationCases } from "./cases/activation";
import { describeCases } from "./check";

describeCases("activations", activationCases);

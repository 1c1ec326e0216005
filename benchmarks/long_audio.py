"""Peak memory and time of Phi-4-multimodal's encoder over long audio, by `windows_at_once`.

The layers have the published sizes and random weights. By default there are 2 of the 24: of what is heard without
learning, memory is that of one layer, and time that of so many. Ratios are to the family's own 4 windows at once.
Every measurement is a fresh process; memory is its peak above what it held with weights and features in place.
"""

import argparse
import json
import subprocess
import sys
import time

import torch
from kl_memory import MIB, forget_peak, peak_bytes
from machine import describe
from torch import Tensor
from transformers.models.phi4_multimodal.configuration_phi4_multimodal import Phi4MultimodalAudioConfig
from transformers.models.phi4_multimodal.modeling_phi4_multimodal import Phi4MultimodalAudioModel

from rlspeech.students._conformer import encode

MEL_PER_S = 100
OWN = 4


def measure(at_once: int, args: argparse.Namespace) -> dict[str, float]:
    """Seconds and MiB of this process, and a sum of the frames, which all share."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    config = Phi4MultimodalAudioConfig(num_blocks=args.blocks)
    tower = Phi4MultimodalAudioModel(config).eval().requires_grad_(args.learns).to(args.device)
    mel = torch.randn(args.minutes * 60 * MEL_PER_S, config.input_size)

    def once(features: Tensor) -> float:
        with torch.set_grad_enabled(args.learns):
            (frames,) = encode(tower, [features], at_once=at_once)
            if args.learns:
                frames.square().mean().backward()
        return float(frames.detach().square().mean())

    once(mel[:MEL_PER_S])
    base, started = forget_peak(args.device), time.perf_counter()
    value = once(mel)
    return {
        "s": time.perf_counter() - started,
        "mib": (peak_bytes(args.device) - base) / MIB,
        "value": value,
    }


def in_a_fresh_process(at_once: int) -> dict[str, float]:
    command = [sys.executable, __file__, *sys.argv[1:], "--at-once", str(at_once)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=int, default=30)
    parser.add_argument("--windows", type=int, nargs="+", default=[1, OWN, 16], help="at once; one takes about 1 GiB")
    parser.add_argument("--blocks", type=int, default=2, help="layers of the encoder")
    parser.add_argument("--learns", action="store_true", help="forward and backward")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--at-once", type=int, help="measure one alone, in this process, and print JSON")
    args = parser.parse_args()
    if args.at_once:
        print(json.dumps(measure(args.at_once, args)))
        return
    print(f"{describe()}\n\n{args.minutes} minutes, {args.blocks} layers\n")
    print("| windows at once |  MiB | ratio | clock s | ratio |\n|---|---|---|---|---|")
    own = in_a_fresh_process(OWN)
    for at_once in args.windows:
        found = own if at_once == OWN else in_a_fresh_process(at_once)
        assert abs(found["value"] - own["value"]) < 1e-4 * own["value"], (found, own)
        cells = [f"{found[key]:6.1f} | {found[key] / own[key]:5.3f}" for key in ("mib", "s")]
        print(f"| {at_once:>15} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

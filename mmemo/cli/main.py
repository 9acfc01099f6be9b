"""`mmemo VERB ...`: finds the verb; everything heavy is imported inside it."""

from __future__ import annotations

import os
import sys
from importlib import import_module

VERBS = {
    "corpus": "a corpus on disk -> manifest",
    "check": "validate a manifest, list broken audio and leaks, draw its distributions",
    "augment": "a page to see and hear what each augmentation does to a clip",
    "transcribe": "Whisper transcripts of a manifest, cached and resumable",
    "fit": "train a model from a YAML",
    "validate": "metrics on the validation rows",
    "test": "metrics on the test rows",
    "predict": "probabilities of every class, one row per utterance",
    "crossval": "fit, test and predict every fold of a YAML's split, resumable",
    "tune": "better settings, searched for on folds of the training side alone",
    "compare": "whether runs differ: paired over speakers, corrected for many comparisons",
    "report": "one HTML page of a run that opens anywhere: figures with intervals, pictures, how to reproduce",
    "explain": "which sounds and words an answer rests on",
    "robustness": "what a trained model keeps in noise, on the telephone, with wrong words, under attack",
    "probe": "how much of the speaker, or of any column, is left in the fused vectors",
    "export": "a checkpoint -> one ONNX file from waveform to probabilities, with model card and example",
    "analyze": "which emotions are heard in clips, long recordings and folders",
    "backbone": "a fine-tuned encoder -> a model folder for other experiments",
    "cache": "size of the feature caches; clear them",
}
TRAINER_VERBS = ("fit", "validate", "test", "predict")


def usage() -> str:
    """The text of `mmemo --help`."""
    verbs = "\n".join(f"  {name:<12}{text}" for name, text in VERBS.items())
    return (
        "usage: mmemo VERB ...\n\nRecognises emotion from voice and words.\n\n"
        f"verbs:\n{verbs}\n\n`mmemo VERB --help` explains a verb."
    )


def main(argv: list[str] | None = None) -> int:
    """Runs a verb.

    Args:
        argv: Command line without the program's name; that of the process when not given.

    Returns:
        0 when all went well, 1 for bad input, 2 for a bad command line, 130 when interrupted, 141 when what it prints
        is not read to its end.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    if argv[0] == "--version":
        import mmemo

        print(mmemo.__version__)
        return 0
    verb = argv[0]
    if verb not in VERBS:
        from difflib import get_close_matches

        near = get_close_matches(verb, VERBS, n=1)
        meant = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(VERBS)};"
        print(f"mmemo: no verb {verb!r}, {meant} see `mmemo --help`", file=sys.stderr)
        return 2
    try:
        module = import_module("mmemo.cli.trainer" if verb in TRAINER_VERBS else f"mmemo.cli.{verb}")
        status: int = module.run(argv if verb in TRAINER_VERBS else argv[1:])
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # of `mmemo ... | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("\ninterrupted; what was finished is kept", file=sys.stderr)
        return 130
    except SystemExit as stop:
        if verb == "fit" and stop.code == 1:  # Lightning's answer to Ctrl-C
            print("\ninterrupted; `fit ... --ckpt_path last` goes on after the last whole epoch", file=sys.stderr)
            return 130
        raise
    except Exception as error:
        if type(error).__name__ == "UnpicklingError":
            print(f"mmemo {verb}: the file given as --ckpt_path is no checkpoint of `mmemo fit`", file=sys.stderr)
            return 1
        told = isinstance(error, (ValueError, OSError, ImportError, FloatingPointError))
        ours = told or type(error).__module__.startswith("mmemo")
        if not ours or not str(error) or os.environ.get("MMEMO_DEBUG"):
            raise  # a fault, ours or of a part of the user's own: where it happened matters
        text = str(error)
        if "Union subtypes" in text:
            from mmemo.training.parser import innermost

            text = innermost(text)
        print(f"mmemo {verb}: {text}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

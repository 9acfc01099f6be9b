"""``mmemo VERB ...``: the list of verbs. Each is imported when it is called, so that help and mistakes are fast."""

from __future__ import annotations

import os
import sys
import traceback
from argparse import ArgumentError
from difflib import get_close_matches

from cyclopts import App, CycloptsError, MissingArgumentError, UnknownCommandError, UnknownOptionError

import mmemo
from mmemo.lightning import lightning_runs
from mmemo.settings import DEBUG_VARIABLE, is_debugging

INTERRUPTED = 130  # exit code after Ctrl-C, by convention of the shell
BROKEN_PIPE = 141  # exit code when nobody reads the output

app = App(
    name="mmemo",
    help="Predicts emotion from recordings and their transcripts.",
    help_epilogue="`mmemo VERB --help` explains a verb. `mmemo --install-completion` installs shell completion.",
    version=mmemo.__version__,
    result_action="return_value",
    suppress_keyboard_interrupt=False,  # main() prints a sentence
)
app.register_install_completion_command()

VERBS = {
    "analyze": "Predict the emotions of recordings, long or short.",
    "corpus": "Turn a corpus on disk into a manifest.",
    "check": "Validate a manifest; list broken audio and leaks; draw its distributions.",
    "transcribe": "Add Whisper transcripts to a manifest; cached and resumable.",
    "augment": "Write a page to see and hear what each augmentation does to a clip.",
    "crossval": "Train, test and predict every fold of an experiment; resumable.",
    "tune": "Search for better settings on folds of the training side.",
    "compare": "Compare runs: paired over speakers, corrected for multiple comparisons.",
    "report": "Write one HTML page of a run: metrics with intervals, calibration, subgroups.",
    "explain": "Show which sounds and words a prediction depends on.",
    "robustness": "Evaluate a model in noise, on the telephone, with wrong words, under attack.",
    "probe": "Measure how much of the speaker, or of any column, the fused vectors contain.",
    "export": "Export a checkpoint to ONNX, with model card and example.",
    "backbone": "Save a fine-tuned encoder as a model folder for other experiments.",
    "cache": "Show the size of the feature caches; clear them.",
}
TRAINER_VERBS = {
    "fit": "Train a model.",
    "validate": "Evaluate a model on the validation rows.",
    "test": "Evaluate a model on the test rows.",
    "predict": "Write the probabilities of every class, one row per utterance.",
}
RESUMABLE = {"crossval", "tune", "transcribe", "robustness"}
OWN_PACKAGES = {"mmemo", "jsonargparse", "cyclopts"}  # their errors are sentences, without need for a traceback
SYNONYMS = {"train": "fit", "evaluate": "test", "eval": "test", "analyse": "analyze", "cv": "crossval"}
for _verb, _help in VERBS.items():
    app.command(f"mmemo.cli.{_verb}:{_verb}", name=_verb, help=_help)
for _verb, _help in TRAINER_VERBS.items():
    app.command(f"mmemo.cli.trainer:{_verb}", name=_verb, help=_help, help_flags=[])  # they have their own help


def main(argv: list[str] | None = None) -> int:
    """Runs a verb.

    Args:
        argv: Command line without the program's name. Defaults to that of the process.

    Returns:
        0 on success, 1 for bad input, 2 for a bad command line, 130 after Ctrl-C, 141 if the output is not read.
    """
    argv = sys.argv[1:] if argv is None else argv
    verb = next((word for word in argv if not word.startswith("-")), "")
    if "" not in sys.path:
        sys.path.insert(0, "")  # class_path: my_fusion.MyFusion finds my_fusion.py in the current folder
    try:
        with lightning_runs():
            status = app(argv, exit_on_error=False, print_error=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except BrokenPipeError:  # such as `mmemo ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except KeyboardInterrupt:
        print(f"\n{_interruption(verb)}", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except CycloptsError as mistake:
        print(f"{f'mmemo {verb}'.rstrip()}: {_sentence(mistake, verb, argv)}", file=sys.stderr)
        return 2
    except Exception as raised:
        error = _innermost(raised)
        if not _is_expected(error) or not str(error) or is_debugging():
            raise  # a bug, or MMEMO_DEBUG=1; a ValueError of a user's own part gets a hint
        print(f"mmemo {verb}: {error}{_traceback_hint(error)}", file=sys.stderr)
        return 2 if isinstance(error, ArgumentError) else 1


def _interruption(verb: str) -> str:
    if verb == "fit":
        return "Interrupted. Finished work is kept; `fit ... --ckpt_path last` resumes it."
    return f"Interrupted.{' Finished work is kept; the same command resumes it.' * (verb in RESUMABLE)}"


def _traceback_hint(error: Exception) -> str:
    """Returns how to see the traceback of an error from a library or from a user's own part."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    package = str(frames[-1].f_globals.get("__name__", "")).partition(".")[0] if frames else "mmemo"
    is_own = package in OWN_PACKAGES or not isinstance(error, ValueError | OSError | ImportError)
    return "" if is_own else f" ({DEBUG_VARIABLE}=1 shows the traceback)"


def _sentence(error: CycloptsError, verb: str, argv: list[str]) -> str:
    """Returns an error of the command line, with a remedy for the common mistakes."""
    if isinstance(error, UnknownCommandError):
        close = next(iter(get_close_matches(verb, [*VERBS, *TRAINER_VERBS, *SYNONYMS], 1)), "")
        guess = f"; did you mean {SYNONYMS.get(close, close)}?" if close else "."
        return f"unknown command {verb}{guess} `mmemo --help` lists all commands."
    config = next((word for word in argv[1:] if word.endswith((".yaml", ".yml"))), "")
    if isinstance(error, MissingArgumentError) and config and "--config" not in argv:
        return f"the YAML is an option; write `mmemo {verb} --config {config}`"
    if isinstance(error, UnknownOptionError) and "." in (error.token.keyword or ""):
        name = str(error.token.keyword).removeprefix("--")
        return f"unknown option --{name}; settings of the YAML are changed with --set, such as --set {name}=VALUE"
    message = " ".join(str(error).split()).replace(f'Command "{verb}" parameter', "Option")
    return f"{message} See `mmemo{f' {verb}' * (verb in app)} --help`."


def _innermost(error: Exception) -> Exception:
    if not isinstance(error, ValueError | ArgumentError | ImportError):
        return error
    from mmemo.training.recipe import innermost

    return innermost(error)


def _is_expected(error: Exception) -> bool:
    """Returns whether an error describes bad input in a sentence."""
    expected = isinstance(error, ValueError | OSError | ImportError | FloatingPointError | ArgumentError)
    return expected or type(error).__module__.startswith(("mmemo", "lightning_fabric"))  # such as "no GPU found"

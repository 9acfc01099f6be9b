"""Renders `benchmarks/README.md` from the stored results and published values, and the results table of the README.

make bench-table
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
PUBLISHED = json.loads((HERE / "published.json").read_text())
GROUPS = {  # result file -> title and, for each result with a row, its description and the goal
    "ravdess_frozen": (
        "RAVDESS, eight emotions, six published speaker-disjoint folds, frozen Whisper base",
        {
            "ua_mean": ("unweighted accuracy, mean over six test folds, %", "at least 76"),
            "ua_folds": ("unweighted accuracy per fold, %", ""),
            "ua_deviation": ("standard deviation over folds, points", ""),
            "macro_f1_mean": ("macro F1, %", ""),
            "seconds_features": ("time to compute all features, s", "under 240"),
            "seconds_folds": ("time to train and test all six folds, s", "under 1200"),
        },
    ),
    "ravdess_finetuned": (
        "RAVDESS, the same folds: blocks 3 and 4 of Whisper base fine-tuned on cached views with mixup",
        {
            "ua_mean": ("unweighted accuracy, mean over six test folds, %", "at least 80"),
            "ua_folds": ("unweighted accuracy per fold, %", ""),
            "ua_fold1": ("unweighted accuracy on fold 1, whose test speakers did not influence the settings, %", ""),
            "ua_deviation": ("standard deviation over folds, points", ""),
            "macro_f1_mean": ("macro F1, %", ""),
            "ua_audio_mean": ("frozen encoder, audio only, unweighted accuracy, %", ""),
            "ua_fused_mean": ("frozen encoders, audio and Whisper transcripts, unweighted accuracy, %", ""),
            "fused_minus_audio": ("audio and text minus audio only, points", "at least -1"),
        },
    ),
    "two_channel": (
        "Two-channel corpus: emotion in the audio (RAVDESS) or in the text (spoken words), transcripts by Whisper",
        {
            "chosen_on_dev": ("gate or fusion with the best dev UAR; it is the fused model below", ""),
            "uar_fused": ("fused model, UAR on the union, %", "at least 66"),
            "uar_audio": ("audio only, UAR on the union, %", ""),
            "uar_text": ("text only, UAR on the union, %", ""),
            "gain_over_better_alone": ("fused model minus the better of the two, points", "at least 9"),
            "uar_fused_ravdess": ("fused model, UAR on the RAVDESS half, %", ""),
            "uar_only_ravdess_ravdess": ("the same model trained on the RAVDESS half only, %", ""),
            "fused_minus_only_ravdess": ("difference of the two, points", "at least -3"),
            "uar_fused_spoken": ("fused model, UAR on the spoken-words half, %", ""),
            "uar_only_spoken_spoken": ("the same model trained on the spoken-words half only, %", ""),
            "fused_minus_only_spoken": ("difference of the two, points", "at least -3"),
            "uar_audio_ravdess": ("audio only, UAR on the RAVDESS half, %", ""),
            "uar_audio_spoken": ("audio only, UAR on the spoken-words half, %", ""),
            "uar_text_ravdess": ("text only, UAR on the RAVDESS half, %", ""),
            "uar_text_spoken": ("text only, UAR on the spoken-words half, %", ""),
            "gate_auc": (
                "area under the ROC curve of the modality gate's audio weight as a classifier of the halves",
                "at least 0.95",
            ),
        },
    ),
    "meld_text": (
        "MELD, text only, official splits: MiniLM fine-tuned on GoEmotions, then on MELD",
        {
            "weighted_f1": ("weighted F1, %", "at least 60.5"),
            "uar": ("UAR, %", ""),
            "macro_f1": ("macro F1, %", ""),
            "accuracy": ("accuracy, %", ""),
        },
    ),
    "robustness": (
        "RAVDESS, published folds 1 and 2, Whisper base: a plain and a defended model under attack and noise",
        {
            "kept_fgsm45_plain": (
                "plain, one-step attack (FGSM) on the waveform at 45 dB, correct answers kept, %",
                "",
            ),
            "kept_fgsm45": ("defended, one-step attack at 45 dB, correct answers kept, %", "at least 60"),
            "kept_pgd45_plain": ("plain, 20-step attack (PGD) at 45 dB, correct answers kept, %", ""),
            "kept_pgd45": ("defended, 20-step attack at 45 dB, correct answers kept, %", "at least 50"),
            "kept_pgd45_from_opened": (
                "defended, 20-step attack transferred from a copy without clipping, correct answers kept, %",
                "",
            ),
            "clean_plain": ("plain, clean UAR, %", ""),
            "clean": ("defended, clean UAR, %", ""),
            "clean_cost_points": ("clean UAR lost through the defence, points", "at most 1.5"),
            "noise10_loss_plain": ("plain, UAR lost in white noise at 10 dB, points", ""),
            "noise10_loss": ("defended, UAR lost in white noise at 10 dB, points", "at most half of plain"),
        },
    ),
    "adversarial_text": (
        "Two-channel corpus with wrong or missing transcripts: a plain and a hardened model",
        {
            "uar": ("hardened, UAR on the union, %", ""),
            "uar_plain": ("plain, UAR on the union, %", ""),
            "uar_audio": ("audio only, UAR on the union, %", ""),
            "uar_no_words": ("hardened, with empty transcripts, %", ""),
            "uar_no_words_plain": ("plain, with empty transcripts, %", ""),
            "no_words_minus_audio": ("hardened with empty transcripts minus audio only, points", "at least -2"),
            "words20_loss": ("hardened, spoken-words half, UAR lost with 20 % wrong words, points", "at most 3"),
            "words20_loss_plain": ("plain, spoken-words half, UAR lost with 20 % wrong words, points", ""),
        },
    ),
    "domain": (
        "Gradient reversal: speakers in RAVDESS (folds 1 and 2), and transfer from RAVDESS to EMO-DB",
        {
            "uar_plain": ("UAR without gradient reversal, %", ""),
            "uar_reversed": ("UAR with gradient reversal, %", ""),
            "uar_cost_points": ("UAR lost through gradient reversal, points", "at most 1"),
            "probe_train_plain": ("accuracy of a linear probe for the 20 training speakers, without, %", ""),
            "probe_train_reversed": ("the same, with gradient reversal, %", ""),
            "probe_train_ratio": ("ratio of the two", "at most 0.5"),
            "probe_test_plain": ("accuracy of a linear probe for the 4 test speakers, without, %", ""),
            "probe_test_reversed": ("the same, with gradient reversal (chance: 25 %), %", ""),
            "probe_test_ratio": ("ratio of the two", "at most 0.5"),
            "uar_emodb_plain": ("RAVDESS to EMO-DB, four emotions: UAR, trained on RAVDESS only, %", ""),
            "uar_emodb_unlabelled": ("with unlabelled EMO-DB speakers in training, without gradient reversal, %", ""),
            "uar_emodb_reversed": ("with unlabelled EMO-DB speakers in training and gradient reversal, %", ""),
        },
    ),
    "distillation": (
        "RAVDESS, the same folds: log-mel students, each distilled from the teacher of its own fold",
        {
            "ua_teacher": ("teacher: frozen Whisper base on augmented views with mixup, unweighted accuracy, %", ""),
            "ua_base": ("base student, unweighted accuracy, %", "at least 74"),
            "ua_base_folds": (
                "base student per fold, % (students were chosen on the test actors of folds 2 to 6, so only fold 1 "
                "is independent of the choice)",
                "",
            ),
            "base_share_of_teacher": ("base student, share of the teacher's accuracy, %", "at least 92"),
            "ua_small": ("small student, unweighted accuracy, %", "at least 70"),
            "ua_small_folds": ("small student per fold, %", ""),
            "ua_nano": ("nano student, unweighted accuracy, %", "at least 64"),
            "ua_labels": ("small student without a teacher, same views and mixup, unweighted accuracy, %", ""),
            "gain_points_small": ("gain of the small student from its teacher, points", "at least 5"),
            "gain_points_small_interval": ("95 % interval over speakers, in points of UAR on all folds together", ""),
            "gain_points_small_p": ("p-value of the gain (permutation test)", ""),
            "int8_cost_points": ("accuracy that the small student loses in int8, points", "at most 0.5"),
            "int8_kilobytes_small": ("int8 file of the small student, kB", "at most 500"),
        },
    ),
    "student_choices": (
        "Students compared on two folds of the training-side speakers of RAVDESS's fold 1",
        {
            "small": ("small: ConvNeXt blocks over time, distilled, unweighted accuracy, %", ""),
            "small_folds": ("the same, per fold, %", ""),
            "labels": ("small, without a teacher, %", ""),
            "labels_folds": ("the same, per fold, %", ""),
            "recurrent": ("small: convolutions and an LSTM instead of ConvNeXt blocks, distilled, %", ""),
            "recurrent_folds": ("the same, per fold, %", ""),
            "attention": ("small: two layers of self-attention instead of three of the five blocks, distilled, %", ""),
            "attention_folds": ("the same, per fold, %", ""),
            "emodb": ("small, distilled on RAVDESS and on EMO-DB without its labels, %", ""),
            "emodb_folds": ("the same, per fold, %", ""),
            "lowrank": ("base: first two blocks of Whisper base with matrices of rank 52, distilled, %", ""),
            "lowrank_folds": ("the same, per fold, %", ""),
            "base": ("base: ConvNeXt blocks over time, distilled, %", ""),
            "base_folds": ("the same, per fold, %", ""),
            "hints": ("base, which also matches the teacher's fused vector, %", ""),
            "hints_folds": ("the same, per fold, %", ""),
            "patient": ("base, 120 epochs, %", ""),
            "patient_folds": ("the same, per fold, %", ""),
            "small_patient": ("small, 120 epochs, %", ""),
            "small_patient_folds": ("the same, per fold, %", ""),
        },
    ),
    "two_channel_student": (
        "Two-channel corpus: audio-only students of a teacher with audio and text, or with audio only",
        {
            "student_of_fused_spoken": ("teacher with audio and text, UAR on the spoken-words half, %", "reported"),
            "student_of_audio_spoken": ("audio-only teacher, UAR on the spoken-words half, %", "reported"),
            "student_of_labels_spoken": ("no teacher, UAR on the spoken-words half, %", ""),
            "student_of_fused_ravdess": ("teacher with audio and text, UAR on the RAVDESS half, %", ""),
            "student_of_audio_ravdess": ("audio-only teacher, UAR on the RAVDESS half, %", ""),
            "student_of_labels_ravdess": ("no teacher, UAR on the RAVDESS half, %", ""),
            "teacher_fused_spoken": ("the teacher with audio and text itself, spoken-words half, %", ""),
            "teacher_audio_spoken": ("the audio-only teacher itself, spoken-words half, %", ""),
        },
    ),
    "shipped_student": (
        "`checkpoints/mmemo-student` (int8) on test speakers",
        {
            "uar_ravdess": ("RAVDESS, 8 actors, seven emotions, UAR, %", ""),
            "uar_ravdess_as_analyze_cuts": ("the same, segmented by `mmemo analyze`, %", ""),
            "uar_ravdess_whole_files": ("the same, untrimmed clips (about 1 s of silence at each end), %", ""),
            "uar_ravdess_8_khz": ("the same, resampled to 8 kHz, %", ""),
            "uar_ravdess_20_db_quieter": ("the same, 20 dB quieter, %", ""),
            "uar_emodb": ("EMO-DB, 5 speakers, four of the seven emotions, UAR, %", ""),
            "uar_spoken": ("GoEmotions sentences read by espeak-ng (emotion in the text only), UAR, %", ""),
            "uar_emodb_unseen_corpus": ("a student trained without EMO-DB, on all of EMO-DB, UAR, %", ""),
            "int8_kilobytes": ("file size, kB", "at most 500"),
            "int8_agreement": ("clips with the same class as PyTorch, %", "at least 98"),
        },
    ),
    "evidence": (
        "Evaluation methods: intervals, calibration, conformal sets, leak audit, tuning, report",
        {
            "clustered_coverage": ("simulation: coverage of 95 % intervals over speakers, %", "92 to 98"),
            "naive_coverage": ("simulation: coverage of 95 % intervals over utterances, %", "not 92 to 98"),
            "ua_frozen": ("RAVDESS, frozen, three seeds: unweighted accuracy, %", ""),
            "ua_frozen_interval": ("its 95 % interval over speakers, %", ""),
            "ua_frozen_seeds": ("unweighted accuracy per seed, %", ""),
            "ua_tuned": ("RAVDESS, fine-tuned, the seeds below: unweighted accuracy, %", ""),
            "ua_tuned_interval": ("its 95 % interval over speakers, %", ""),
            "ua_tuned_seeds": ("unweighted accuracy per seed, %", ""),
            "ece_before_tuned": ("fine-tuned: expected calibration error, mean over seeds", ""),
            "ece_after_tuned": ("the same, with a temperature fitted on other speakers", "at most 0.04"),
            "conformal_coverage_tuned": ("fine-tuned: coverage of 90 % conformal sets, %", "88 to 92"),
            "tuned_minus_frozen": ("fine-tuned minus frozen, same seeds, points", ""),
            "tuned_minus_frozen_interval": ("its 95 % interval over speakers, points", ""),
            "tuned_minus_frozen_p": ("its p-value (permutation test over speakers)", ""),
            "visible_difference": ("difference that this number of speakers reveals in 80 % of studies, points", ""),
            "ece_before": ("frozen: expected calibration error, mean over seeds", ""),
            "ece_after": ("the same, with a temperature fitted on other speakers", "at most 0.04"),
            "conformal_coverage": (
                "frozen: coverage of 90 % conformal sets on other speakers, 200 random splits, %",
                "88 to 92",
            ),
            "conformal_set_size": ("frozen: mean number of classes in a conformal set", ""),
            "leak_flags_ravdess": ("leak audit: properties flagged in RAVDESS", "none"),
            "leaks_between_published_folds": ("speakers, files or audio in two splits of a published fold", "0"),
            "leak_flags_speaker_gives_label": (
                "leak audit: properties flagged if each speaker has only two emotions",
                "speaker",
            ),
            "tune_minutes": ("`mmemo tune`, TPE, 20 trials, two processes, minutes", "at most 15"),
            "tune_inner_own": ("the experiment's own settings, UAR on inner folds, %", ""),
            "tune_inner_best": ("the best settings, UAR on inner folds, %", ""),
            "tune_outer_own": ("the experiment's own settings, UAR on the outer test speakers, %", ""),
            "tune_outer_best": (
                "the best settings, UAR on the outer test speakers, %",
                "better, or reported as not better",
            ),
            "tune_outer_p": ("p-value of the difference on the outer test speakers", ""),
            "report_seconds": ("`mmemo report` of 5000 utterances, s", "under 20"),
            "report_megabytes": ("size of the page, MB", "under 3"),
        },
    ),
    "study": (
        "Synthetic health study of RAVDESS actors: share of fear and sadness, two visits",
        {
            "participants": ("participants", ""),
            "ccc_participants": ("CCC of predicted and labelled share over participants", ""),
            "ccc_participants_interval": ("its 95 % interval", ""),
            "mean_change": ("mean change between visits, predicted", ""),
            "mean_change_interval": ("its 95 % interval", ""),
            "mean_change_true": ("mean change between visits, labelled", ""),
            "ece_before": ("expected calibration error", ""),
            "ece_after_inner_folds": ("the same, with a temperature from inner folds", ""),
        },
    ),
    "runtime": (
        "Speed and memory of the exported student",
        {
            "latency_ratio_teacher": (
                "time for 3 s of audio on one core, relative to the teacher with transcription",
                "at most 1/30",
            ),
            "milliseconds_small_int8": ("student, ms", ""),
            "milliseconds_teacher": ("teacher, ms", ""),
            "real_time_factor": ("student, real-time factor", "at most 0.01"),
            "first_answer_seconds": ("from the start of a process to its first prediction, s", "at most 1"),
            "analyze_hour_seconds": ("`mmemo analyze` of one hour, s", "under 90"),
            "analyze_peak_mb": ("its peak memory, MB", "under 700"),
            "analyze_three_hours_seconds": ("`mmemo analyze` of three hours, s", ""),
            "analyze_three_hours_peak_mb": ("its peak memory, MB", "as for one hour"),
        },
    ),
    "transcribe": (
        "Whisper transcripts",
        {
            "time_ratio_vs_openai": ("time relative to openai-whisper's `transcribe`", "at most 0.35"),
            "wer_delta_points": ("word error rate minus openai-whisper's, points", "at most +0.5"),
            "wer": ("word error rate, %", ""),
            "wer_openai": ("word error rate of openai-whisper, %", ""),
            "seconds_per_clip": ("time per clip, s", ""),
            "seconds_per_clip_openai": ("time per clip of openai-whisper, s", ""),
            "clips": ("clips, half acted (RAVDESS), half synthetic (spoken words)", "at least 120"),
            "clips_fallen_back": ("clips whose decoding was repeated on 30 s", ""),
        },
    ),
    "features": (
        "Cached features of Whisper base",
        {
            "encode_speedup": ("speed-up of encoding at the real length over 30 s", "at least 10"),
            "epoch_speedup": ("speed-up of an epoch from the cache over re-encoding at 30 s", "at least 50"),
            "epoch_speedup_over_real_length": (
                "speed-up of an epoch from the cache over re-encoding at the real length",
                "",
            ),
            "seconds_per_clip": ("encoding at the real length, s per clip", ""),
            "seconds_per_clip_ordinary": ("encoding at 30 s, s per clip", ""),
            "epoch_seconds_per_clip_cached": ("training epoch from the cache, s per clip", ""),
            "epoch_seconds_per_clip_real_length": ("training epoch, re-encoding at the real length, s per clip", ""),
            "epoch_seconds_per_clip_ordinary": ("training epoch, re-encoding at 30 s, s per clip", ""),
        },
    ),
    "speaker": (
        "Speaker calibration: RAVDESS, frozen Whisper base, six published folds, unweighted accuracy, %",
        {
            "ua_uncalibrated": ("as for unknown speakers", "at least 75.3"),
            **{
                f"ua_enrol{count}": (f"unlabelled utterances of each test speaker: {count}, mean of 20 draws", goal)
                for count, goal in ((1, ""), (3, ""), (5, "at least 81"), (10, ""), (20, "at least 84"), (40, ""))
            },
            "ua_all": ("all 60 utterances of each test speaker", "at least 86"),
            "ua_all_folds": ("all 60, each fold", ""),
            "ua_single_class": ("utterances of one emotion only, the worst of all", "uncalibrated - 1"),
        },
    ),
    "hook_cost": ("Time per training step with a hook, relative to training without it", {}),
    "structure": (
        "The code itself",
        {
            "readme_words": ("words in README.md", ""),
            "readme_lines": ("lines of README.md", ""),
            "longest_function": ("longest function without its docstring, lines", ""),
            "largest_file": ("largest file, lines", ""),
            "max_complexity": ("highest cyclomatic complexity of a function", ""),
            "lines_package": ("lines of the package", ""),
            "import_cycles": ("import cycles", ""),
            "public_with_example": ("public classes and functions with a runnable example", ""),
            "wrong_option_seconds": ("time to the error message for a wrong option, s", ""),
            "fit_help_lines": ("lines of `mmemo fit --help`", ""),
        },
    ),
}


class Headline(NamedTuple):
    """A row of the results table in README.md.

    Args:
        name: Result file.
        key: Result in it.
        task: What was measured.
    """

    name: str
    key: str
    task: str


HEADLINES = (
    Headline("ravdess_frozen", "ua_mean", "RAVDESS, frozen Whisper base, six published folds: unweighted accuracy, %"),
    Headline(
        "speaker",
        "ua_enrol20",
        "RAVDESS, same folds, calibrated on 20 unlabelled utterances of each test speaker: unweighted accuracy, %",
    ),
    Headline(
        "two_channel",
        "uar_fused",
        "Two-channel corpus (emotion in the audio for half of the clips, in the text for the other half), "
        "audio and text: UAR, %",
    ),
    Headline("meld_text", "weighted_f1", "MELD, text only: weighted F1, %"),
    Headline(
        "distillation", "ua_small", "RAVDESS, same folds, student of {parameters} parameters: unweighted accuracy, %"
    ),
    Headline("robustness", "kept_fgsm45", "RAVDESS, one-step attack at 45 dB: correct answers kept, %"),
)


def read_result(name: str) -> dict[str, Any]:
    """Returns a result file."""
    result: dict[str, Any] = json.loads((HERE / "results" / f"{name}.json").read_text())
    return result


def as_text(value: Any) -> str:
    """Returns a result as text."""
    if isinstance(value, list):
        return ", ".join(map(as_text, value)) or "none"
    return value if isinstance(value, str) else f"{value:g}"


def table_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Returns a Markdown table of rows with the same columns."""
    columns = list(rows[0])
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for row in rows:
        cells = (f"{value:,}" if isinstance(value, int) else str(value) for value in row.values())
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def stamp_text(stamp: dict[str, Any]) -> str:
    """Returns commit, machine and date of a measurement."""
    return f"commit {stamp['commit']}, {stamp['machine']}, {stamp['date']}"


def group_lines(name: str) -> list[str]:
    """Returns the section of one result file."""
    title, rows = GROUPS[name]
    result = read_result(name)
    values = result["figures"]
    lines = [f"## {title}", ""]
    if rows:
        lines += ["| result | value | goal |", "|---|---|---|"]
        lines += [
            f"| {text} (`{key}`) | **{as_text(values[key])}** | {goal} |"
            for key, (text, goal) in rows.items()
            if key in values
        ]
        lines.append("")
    if "table" in values:
        lines += [*table_lines(values["table"]), ""]
    if name in PUBLISHED:
        lines += ["| published | value | source |", "|---|---|---|"]
        lines += [f"| {row['what']} | {row['value']} | {row['source']} |" for row in PUBLISHED[name]]
        lines.append("")
    lines += [f"Measured by `{result['command']}`, {stamp_text(result)}.", ""]
    keys_by_stamp: dict[str, list[str]] = {}
    for key, stamp in result.get("earlier", {}).items():
        keys_by_stamp.setdefault(stamp_text(stamp), []).append(f"`{key}`")
    for text, keys in keys_by_stamp.items():
        lines += [f"From another run of this command, {text}: {', '.join(keys)}.", ""]
    return lines


def render() -> str:
    """Returns the page of all results."""
    lines = [
        "# Benchmark results",
        "",
        "`make bench-table` renders this page from `benchmarks/results/*.json` and `benchmarks/published.json`; no",
        "number is typed by hand. The scripts read the recordings from the folder `MMEMO_CORPORA`, with one folder per",
        "corpus, such as `ravdess`, `emodb`, `meld`, `goemotions` and `spoken_words`.",
        "",
    ]
    for name in GROUPS:
        if (HERE / "results" / f"{name}.json").exists():
            lines += group_lines(name)
    return "\n".join(lines).rstrip() + "\n"


def render_headlines() -> str:
    """Returns the results table of README.md, with published values beside ours."""
    students = {row["model"]: row for row in read_result("distillation")["figures"]["table"]}
    parameters = f"{students['small, fp32']['parameters'] / 1000:.0f}k"
    lines = ["| task | mmemo | published | command |", "|---|---|---|---|"]
    for name, key, task in HEADLINES:
        result = read_result(name)
        values = result["figures"]
        value, published = f"**{as_text(values[key])}**", published_text(name, values)
        lines.append(f"| {task.format(parameters=parameters)} | {value} | {published} | `{result['command']}` |")
    return "\n".join([*lines, "", "All results, with machine and date: [benchmarks/README.md](benchmarks/README.md)."])


def published_text(name: str, values: dict[str, Any]) -> str:
    """Returns what README.md shows beside a result: published values, else the best single modality, else ``-``."""
    rows = [row for row in PUBLISHED.get(name, []) if "readme" in row]
    if rows:
        sources = dict.fromkeys(row["source"].partition(",")[0] for row in rows)
        shown = "; ".join(f"{row['readme']}: {row['value']}" for row in rows)
        return f"{shown} ({', '.join(sources)})"
    if "gain_over_better_alone" in values:
        return f"none (best single modality: {values['uar_fused'] - values['gain_over_better_alone']:.2f})"
    return "-"


def main() -> None:
    """Writes the page of all results, and the results table of README.md."""
    (HERE / "README.md").write_text(render())
    readme = HERE.parent / "README.md"
    before, _, rest = readme.read_text().partition("<!-- figures -->")
    _, _, after = rest.partition("<!-- /figures -->")
    readme.write_text(f"{before}<!-- figures -->\n{render_headlines()}\n<!-- /figures -->{after}")
    print(HERE / "README.md")


if __name__ == "__main__":
    main()

"""Renders `benchmarks/README.md` from the result files and the published numbers beside them.

make bench-table
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PUBLISHED = json.loads((HERE / "published.json").read_text())
GROUPS = {  # result file -> title and, for each figure worth a row, what it is and the goal
    "transcribe": (
        "Whisper transcripts",
        {
            "time_ratio_vs_openai": ("time, as a share of openai-whisper's `transcribe`", "at most 0.35"),
            "wer_delta_points": ("word error rate against openai-whisper's, points", "at most +0.5"),
            "wer": ("word error rate, %", ""),
            "wer_openai": ("word error rate of openai-whisper, %", ""),
            "seconds_per_clip": ("seconds per clip", ""),
            "seconds_per_clip_openai": ("seconds per clip, openai-whisper", ""),
            "clips": ("clips, half acted (RAVDESS), half synthetic (spoken words)", "at least 120"),
            "clips_fallen_back": ("clips decoded again on 30 s", ""),
        },
    ),
    "features": (
        "Cached features of Whisper base",
        {
            "encode_speedup": ("times faster per clip than on 30 s", "at least 10"),
            "epoch_speedup": ("times faster epoch from the cache than re-encoding on 30 s", "at least 50"),
            "epoch_speedup_over_real_length": (
                "times faster epoch from the cache than re-encoding on the real length",
                "",
            ),
            "seconds_per_clip": ("seconds per clip", ""),
            "seconds_per_clip_ordinary": ("seconds per clip on 30 s", ""),
            "epoch_seconds_per_clip_cached": ("seconds per clip of a training epoch, from the cache", ""),
            "epoch_seconds_per_clip_real_length": ("the same, re-encoding on the real length", ""),
            "epoch_seconds_per_clip_ordinary": ("the same, re-encoding on 30 s", ""),
        },
    ),
    "ravdess_frozen": (
        "RAVDESS, eight emotions, six published speaker-disjoint folds, frozen Whisper base",
        {
            "ua_mean": ("unweighted accuracy, mean of six test folds, %", "at least 76"),
            "ua_folds": ("unweighted accuracy of each fold, %", ""),
            "ua_deviation": ("standard deviation over folds, points", ""),
            "macro_f1_mean": ("macro F1, %", ""),
            "seconds_features": ("seconds for all features", "under 240"),
            "seconds_folds": ("seconds for all six folds", "under 1200"),
        },
    ),
    "ravdess_finetuned": (
        "RAVDESS, the same folds, blocks 3 and 4 of Whisper base trained on cached, mixed views",
        {
            "ua_mean": ("unweighted accuracy, mean of six test folds, %", "at least 80"),
            "ua_folds": ("unweighted accuracy of each fold, %", ""),
            "ua_fold1": ("fold 1 by itself, whose speakers had no part in choosing the settings, %", ""),
            "ua_deviation": ("standard deviation over folds, points", ""),
            "macro_f1_mean": ("macro F1, %", ""),
            "ua_audio_mean": ("frozen encoder, voice alone, %", ""),
            "ua_fused_mean": ("frozen encoders, Whisper's words beside the voice, %", ""),
            "fused_minus_audio": ("words against voice alone, points", "at least -1"),
        },
    ),
    "two_channel": (
        "Two-channel corpus: emotion in the voice (RAVDESS) or in the words (spoken words), words by Whisper",
        {
            "chosen_on_dev": ("gate or fusion of the fused model, chosen on dev", ""),
            "uar_fused": ("UAR on the union, voice and words, %", "at least 66"),
            "uar_audio": ("voice alone, %", ""),
            "uar_text": ("words alone, %", ""),
            "gain_over_better_alone": ("fused against the better of them, points", "at least 9"),
            "uar_fused_ravdess": ("fused, voice half, %", ""),
            "uar_only_ravdess_ravdess": ("the same model trained on the voice half alone, %", ""),
            "fused_minus_only_ravdess": ("difference of the two, points", "at least -3"),
            "uar_fused_spoken": ("fused, words half, %", ""),
            "uar_only_spoken_spoken": ("the same model trained on the words half alone, %", ""),
            "fused_minus_only_spoken": ("difference of the two, points", "at least -3"),
            "uar_audio_ravdess": ("voice alone, voice half, %", ""),
            "uar_audio_spoken": ("voice alone, words half, %", ""),
            "uar_text_ravdess": ("words alone, voice half, %", ""),
            "uar_text_spoken": ("words alone, words half, %", ""),
            "gate_auc": (
                "the modality gate's voice weight tells the halves apart, area under the ROC",
                "at least 0.95",
            ),
        },
    ),
    "meld_text": (
        "MELD, words only, official splits: MiniLM tuned on GoEmotions, then on MELD",
        {
            "weighted_f1": ("weighted F1, %", "at least 60.5"),
            "uar": ("UAR, %", ""),
            "macro_f1": ("macro F1, %", ""),
            "accuracy": ("accuracy, %", ""),
        },
    ),
    "robustness": (
        "RAVDESS, published folds 1 and 2, Whisper base, plain and defended: correct answers kept, UAR lost",
        {
            "kept_fgsm45_plain": ("plain, one-step attack on the waveform at 45 dB, correct answers kept, %", ""),
            "kept_fgsm45": ("defended, one-step attack at 45 dB, correct answers kept, %", "at least 60"),
            "kept_pgd45_plain": ("plain, 20-step attack (PGD) at 45 dB, %", ""),
            "kept_pgd45": ("defended, 20-step attack at 45 dB, correct answers kept, %", "at least 50"),
            "kept_pgd45_from_opened": ("defended, attack found against itself without clipping, %", ""),
            "clean_plain": ("plain, clean UAR, %", ""),
            "clean": ("defended, clean UAR, %", ""),
            "clean_cost_points": ("clean UAR lost by the defence, points", "at most 1.5"),
            "noise10_loss_plain": ("plain, UAR lost in white noise at 10 dB, points", ""),
            "noise10_loss": ("defended, the same, points", "at most half of plain"),
        },
    ),
    "adversarial_text": (
        "Two-channel corpus with wrong or missing words",
        {
            "uar": ("hardened, UAR on the union, %", ""),
            "uar_plain": ("plain, %", ""),
            "uar_audio": ("voice alone, %", ""),
            "uar_no_words": ("hardened, transcripts emptied, %", ""),
            "uar_no_words_plain": ("plain, transcripts emptied, %", ""),
            "no_words_minus_audio": ("hardened with transcripts emptied against voice alone, points", "at least -2"),
            "words20_loss": ("hardened, words half, UAR lost with 20 % wrong words, points", "at most 3"),
            "words20_loss_plain": ("plain, the same, points", ""),
        },
    ),
    "domain": (
        "Gradient reversal: speakers in RAVDESS (folds 1 and 2), and RAVDESS to EMO-DB",
        {
            "uar_plain": ("UAR without it, %", ""),
            "uar_reversed": ("UAR with it, %", ""),
            "uar_cost_points": ("UAR lost by it, points", "at most 1"),
            "probe_train_plain": ("linear probe for the 20 training speakers without it, accuracy, %", ""),
            "probe_train_reversed": ("with it, %", ""),
            "probe_train_ratio": ("with it, as a share of without", "at most 0.5"),
            "probe_test_plain": ("linear probe for the 4 test speakers without it, accuracy, %", ""),
            "probe_test_reversed": ("with it, %", ""),
            "probe_test_ratio": ("with it, as a share of without (chance is 25 %)", "at most 0.5"),
            "uar_emodb_plain": ("RAVDESS to EMO-DB, four emotions, UAR without it, %", ""),
            "uar_emodb_heard": ("EMO-DB's other speakers heard without labels, nothing reversed, %", ""),
            "uar_emodb_reversed": ("with it and EMO-DB heard without labels, %", ""),
        },
    ),
    "distillation": (
        "RAVDESS, the same folds: students of log-mel, each fold's taught by that fold's own teacher",
        {
            "ua_teacher": ("teacher: frozen Whisper base on mixed views, unweighted accuracy, %", ""),
            "ua_base": ("base student, %", "at least 74"),
            "ua_base_folds": (
                "each fold (of these figures fold 1 alone is free of the actors by whom students were chosen), %",
                "",
            ),
            "base_share_of_teacher": ("of its teacher's, %", "at least 92"),
            "ua_small": ("small student, %", "at least 70"),
            "ua_small_folds": ("each fold, likewise, %", ""),
            "ua_nano": ("nano student, %", "at least 64"),
            "ua_labels": ("small student on labels alone, same views and mixup, %", ""),
            "gain_points_small": ("what the teacher adds to it, points", "at least 5"),
            "gain_points_small_interval": ("its 95 % interval over speakers, points of UAR on all folds together", ""),
            "gain_points_small_p": ("p-value of no difference (permutation)", ""),
            "int8_cost_points": ("what int8 costs the small student, points", "at most 0.5"),
            "int8_kilobytes_small": ("its int8 file, kB", "at most 500"),
        },
    ),
    "student_choices": (
        "Students compared on two folds of the training-side speakers of RAVDESS's fold 1",
        {
            "small": ("small: ConvNeXt blocks over time, taught, UA, %", ""),
            "small_folds": ("the same, each fold, %", ""),
            "labels": ("small, taught by nobody, %", ""),
            "labels_folds": ("the same, each fold, %", ""),
            "recurrent": ("small: convolutions and a recurrent network (LSTM) in their place, taught, %", ""),
            "recurrent_folds": ("the same, each fold, %", ""),
            "attention": ("small: three of the five blocks replaced by two layers of self-attention, taught, %", ""),
            "attention_folds": ("the same, each fold, %", ""),
            "emodb": ("small, taught on EMO-DB too, without its labels, %", ""),
            "emodb_folds": ("the same, each fold, %", ""),
            "lowrank": ("base: first two blocks of Whisper base with matrices of rank 52, taught, %", ""),
            "lowrank_folds": ("the same, each fold, %", ""),
            "base": ("base: ConvNeXt blocks over time, taught, %", ""),
            "base_folds": ("the same, each fold, %", ""),
            "hints": ("base, which takes over the teacher's fused vector too, %", ""),
            "hints_folds": ("the same, each fold, %", ""),
            "patient": ("base in 120 epochs, %", ""),
            "patient_folds": ("the same, each fold, %", ""),
            "small_patient": ("small in 120 epochs, %", ""),
            "small_patient_folds": ("the same, each fold, %", ""),
        },
    ),
    "two_channel_student": (
        "Two-channel corpus: a student of the voice alone, taught by voice and words, or by the voice",
        {
            "student_of_fused_spoken": ("taught by voice and words, UAR on the spoken half, %", "given"),
            "student_of_audio_spoken": ("taught by the voice, UAR on the spoken half, %", "given"),
            "student_of_labels_spoken": ("taught by nobody, UAR on the spoken half, %", ""),
            "student_of_fused_ravdess": ("taught by voice and words, UAR on the acted half, %", ""),
            "student_of_audio_ravdess": ("taught by the voice, UAR on the acted half, %", ""),
            "student_of_labels_ravdess": ("taught by nobody, UAR on the acted half, %", ""),
            "teacher_fused_spoken": ("the teacher of voice and words, spoken half, %", ""),
            "teacher_audio_spoken": ("the teacher of the voice, spoken half, %", ""),
        },
    ),
    "runtime": (
        "The exported student",
        {
            "latency_ratio_teacher": (
                "time for 3 s on one core, as a share of the teacher's with transcript",
                "at most 1/30",
            ),
            "milliseconds_small_int8": ("milliseconds for it", ""),
            "milliseconds_teacher": ("milliseconds for the teacher", ""),
            "real_time_factor": ("real-time factor", "at most 0.01"),
            "first_answer_seconds": ("seconds from the start of a process to its first answer", "at most 1"),
            "analyze_hour_seconds": ("`mmemo analyze` of an hour, seconds", "under 90"),
            "analyze_peak_mb": ("its peak memory, MB", "under 700"),
            "analyze_three_hours_seconds": ("of three hours, seconds", ""),
            "analyze_three_hours_peak_mb": ("its peak memory, MB", "as for one"),
        },
    ),
    "evidence": (
        "Evidence: intervals, calibration, conformal sets, leak audit, tuning, report",
        {
            "clustered_coverage": ("simulated: 95 % intervals over speakers hold the truth, %", "92 to 98"),
            "naive_coverage": ("simulated: 95 % intervals over utterances hold the truth, %", "not"),
            "ua_frozen": ("RAVDESS, frozen, three seeds: unweighted accuracy, %", ""),
            "ua_frozen_interval": ("its 95 % interval over speakers", ""),
            "ua_frozen_seeds": ("of each seed, %", ""),
            "ua_tuned": ("RAVDESS, fine-tuned, mean of the seeds below: unweighted accuracy, %", ""),
            "ua_tuned_interval": ("its 95 % interval over speakers", ""),
            "ua_tuned_seeds": ("of each seed, %", ""),
            "ece_before_tuned": ("fine-tuned: expected calibration error", ""),
            "ece_after_tuned": ("with a temperature fitted on other speakers", "at most 0.04"),
            "conformal_coverage_tuned": ("fine-tuned: conformal sets at 90 % hold the truth, %", "88 to 92"),
            "tuned_minus_frozen": ("fine-tuned less frozen of the same seeds, points", ""),
            "tuned_minus_frozen_interval": ("its interval", ""),
            "tuned_minus_frozen_p": ("p-value, swapping speakers", ""),
            "detectable_difference": ("difference that these speakers show four times in five, points", ""),
            "ece_before": ("frozen: expected calibration error, mean of seeds", ""),
            "ece_after": ("with a temperature fitted on other speakers", "at most 0.04"),
            "conformal_coverage": (
                "conformal sets at 90 % on unseen speakers, 200 divisions: hold the truth, %",
                "88 to 92",
            ),
            "conformal_set_size": ("classes in a set, mean", ""),
            "leak_flags_ravdess": ("leak audit: red flags on RAVDESS", "none"),
            "leaks_between_published_folds": ("speakers, files or sounds on two sides of its published folds", "0"),
            "leak_flags_speaker_gives_label": ("where each speaker has but two emotions of their own", "speaker"),
            "tune_minutes": ("`mmemo tune`, TPE, 20 trials, two workers, minutes", "at most 15"),
            "tune_inner_own": ("the config's own settings on inner folds, UAR, %", ""),
            "tune_inner_best": ("the best on inner folds, %", ""),
            "tune_outer_own": ("the config's own on the outer test speakers, %", ""),
            "tune_outer_best": ("the best on the outer test speakers, %", "better, or says so"),
            "tune_outer_p": ("p-value of that difference", ""),
            "report_seconds": ("`mmemo report` of 5000 utterances, seconds", "under 20"),
            "report_megabytes": ("its page, MB", "under 3"),
        },
    ),
    "study": (
        "A synthetic health study of RAVDESS's actors: share of fear and sadness, two visits",
        {
            "participants": ("participants", ""),
            "ccc_participants": ("CCC of the share said with the share labelled, over participants", ""),
            "ccc_participants_interval": ("its interval", ""),
            "mean_change": ("mean change between visits, as the model hears it", ""),
            "mean_change_interval": ("its interval", ""),
            "mean_change_true": ("as it is labelled", ""),
            "ece_before": ("calibration error", ""),
            "ece_after_inner_folds": ("with a temperature from inner folds", ""),
        },
    ),
    "shipped_student": (
        "`checkpoints/mmemo-student` (int8), on speakers it never heard",
        {
            "uar_ravdess": ("RAVDESS, 8 actors, seven emotions, UAR, %", ""),
            "uar_ravdess_as_analyze_cuts": ("the same, as `mmemo analyze` finds the speech", ""),
            "uar_ravdess_whole_files": ("the same, with the silence at both ends of each clip", ""),
            "uar_ravdess_8_khz": ("the same, at a telephone's 8 kHz", ""),
            "uar_ravdess_20_db_quieter": ("the same, 20 dB quieter", ""),
            "uar_emodb": ("EMO-DB, 5 speakers, four of the seven emotions, UAR, %", ""),
            "uar_spoken": ("spoken words, whose emotion is not in the voice, UAR, %", ""),
            "uar_emodb_corpus_never_heard": ("a student that never heard EMO-DB, on all of it, UAR, %", ""),
            "int8_kilobytes": ("size, kB", "at most 500"),
            "int8_agreement": ("same class as PyTorch, %", "at least 98"),
        },
    ),
    "hook_cost": ("Time per training step with a hook, relative to plain training", {}),
}


HEADLINES = (
    ("ravdess_frozen", "ua_mean"),
    ("ravdess_finetuned", "ua_mean"),
    ("two_channel", "uar_fused"),
    ("two_channel", "gain_over_better_alone"),
    ("meld_text", "weighted_f1"),
    ("robustness", "kept_fgsm45_plain"),
    ("robustness", "kept_fgsm45"),
    ("robustness", "kept_pgd45"),
    ("distillation", "ua_small"),
    ("distillation", "ua_nano"),
    ("distillation", "ua_base"),
    ("distillation", "gain_points_small"),
    ("runtime", "latency_ratio_teacher"),
    ("runtime", "analyze_hour_seconds"),
    ("evidence", "clustered_coverage"),
    ("evidence", "ece_after"),
    ("evidence", "conformal_coverage"),
    ("shipped_student", "uar_ravdess"),
    ("shipped_student", "int8_kilobytes"),
    ("transcribe", "time_ratio_vs_openai"),
    ("transcribe", "wer_delta_points"),
    ("features", "encode_speedup"),
    ("features", "epoch_speedup"),
)


def shown(value: Any) -> str:
    """A figure as text."""
    if isinstance(value, list):
        return ", ".join(map(shown, value)) or "none"
    return value if isinstance(value, str) else f"{value:g}"


def parts_table(rows: list[dict[str, Any]]) -> list[str]:
    """One line per exchanged part, under the names of its figures."""
    names = list(rows[0])
    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    cells = ([f"{row[name]:,}" if isinstance(row[name], int) else str(row[name]) for name in names] for row in rows)
    return lines + [f"| {' | '.join(line)} |" for line in cells]


def render() -> str:
    """The page."""
    lines = [
        "# Measured figures",
        "",
        "Made by `make bench-table` from `benchmarks/results/*.json`; nothing here is typed by hand. Each",
        "script finds the recordings in the folder that `MMEMO_CORPORA` names (`ravdess/`, `spoken_words/` in it).",
        "",
    ]
    for name, (title, figures) in GROUPS.items():
        path = HERE / "results" / f"{name}.json"
        if not path.exists():
            continue
        result = json.loads(path.read_text())
        lines += [f"## {title}", ""] + (["| figure | measured | goal |", "|---|---|---|"] if figures else [])
        for key, (text, goal) in figures.items():
            if key in result["figures"]:
                lines.append(f"| {text} (`{key}`) | **{shown(result['figures'][key])}** | {goal} |")
        if "table" in result["figures"]:
            lines += ["", *parts_table(result["figures"]["table"])]
        if name in PUBLISHED:
            lines += ["", "| published beside it | figure | source |", "|---|---|---|"]
            lines += [f"| {row['what']} | {row['figure']} | {row['source']} |" for row in PUBLISHED[name]]
        made = f"`{result['command']}`, commit {result['commit']}, {result['machine']}, {result['date']}"
        lines += ["", f"Made by {made}.", ""]
        earlier: dict[str, list[str]] = {}
        for key, stamp in result.get("earlier", {}).items():
            earlier.setdefault(f"commit {stamp['commit']}, {stamp['machine']}, {stamp['date']}", []).append(f"`{key}`")
        lines += [
            line
            for stamp, keys in earlier.items()
            for line in (f"Of that command, but {stamp}: {', '.join(keys)}.", "")
        ]
    return "\n".join(lines).rstrip() + "\n"


def quoted() -> str:
    """The headline figures, for the README."""
    lines = ["| figure | measured | command |", "|---|---|---|"]
    for name, key in HEADLINES:
        path = HERE / "results" / f"{name}.json"
        if path.exists():
            result = json.loads(path.read_text())
            title, figures = GROUPS[name]
            if key not in result["figures"]:
                continue  # not measured yet
            lines.append(
                f"| {title}: {figures[key][0]} | **{shown(result['figures'][key])}** | `{result['command']}` |"
            )
    for row in PUBLISHED["ravdess_frozen"]:
        lines.append(f"| published: {row['what']} | {row['figure']} | {row['source']} |")
    return "\n".join([*lines, "", "All figures, with machine and date: [benchmarks/README.md](benchmarks/README.md)."])


def main() -> None:
    """Writes the page, and the README's excerpt of it."""
    (HERE / "README.md").write_text(render())
    readme = HERE.parent / "README.md"
    before, _, rest = readme.read_text().partition("<!-- figures -->")
    _, _, after = rest.partition("<!-- /figures -->")
    readme.write_text(f"{before}<!-- figures -->\n{quoted()}\n<!-- /figures -->{after}")
    print(HERE / "README.md")


if __name__ == "__main__":
    main()

"""Makes the demo corpus: 48 clips read by espeak-ng, six voices, four emotions in both prosody and words.

Needs the program espeak-ng (`apt-get install espeak-ng`). The clips are in the repository already; this
script is how they came to be:  python demo/make_corpus.py
"""

from __future__ import annotations

import csv
import io
import subprocess
from pathlib import Path
from typing import NamedTuple

import soundfile
import soxr

HERE = Path(__file__).parent
SAMPLE_RATE = 16_000  # Hz


class Prosody(NamedTuple):
    """How espeak-ng reads: words per minute, pitch 0..99, pitch range in per cent, loudness 0..200."""

    speed: int
    pitch: int
    pitch_range: int
    loudness: int


PROSODY = {
    "anger": Prosody(speed=205, pitch=45, pitch_range=160, loudness=180),
    "happiness": Prosody(speed=180, pitch=75, pitch_range=190, loudness=120),
    "neutral": Prosody(speed=160, pitch=50, pitch_range=80, loudness=90),
    "sadness": Prosody(speed=120, pitch=25, pitch_range=20, loudness=55),
}
VOICES = {  # speaker -> espeak-ng voice, gender, side of the split
    "ada": ("en-us+f2", "female", "train"),
    "ben": ("en-gb+m3", "male", "train"),
    "cleo": ("en-gb-scotland+f3", "female", "train"),
    "dan": ("en-us+m1", "male", "train"),
    "eve": ("en-gb+f4", "female", "val"),
    "finn": ("en-us+m7", "male", "test"),
}
SENTENCES = {
    "anger": (
        "I am so angry with you right now.", "Stop it, you have ruined everything!",
        "How dare you speak to me like that!", "I hate it when you lie to me.",
        "Get out of my house this minute!", "This is outrageous, I will not accept it.",
        "You never listen, and I am furious.", "Who broke my window, you idiot?",
        "I am sick of your stupid excuses.", "Leave me alone, I am really mad.",
        "That was a disgusting thing to do to her.", "Shut up and give it back, now!",
    ),
    "happiness": (
        "I am so happy to see you again!", "What a wonderful surprise, thank you!",
        "We won the game, this is fantastic!", "I love this song, let us dance.",
        "That is the best news I have heard all year.", "Our baby smiled at me today, how lovely.",
        "I got the job, I am so excited!", "It is a beautiful day, and I feel great.",
        "Your present made me laugh with joy.", "We are going to the beach tomorrow, hurray!",
        "I am delighted with my new home.", "Congratulations, you did a brilliant job!",
    ),
    "neutral": (
        "The train leaves at ten past four.", "Please put the books on the table.",
        "The office is on the second floor.", "I will send the report on Monday.",
        "There are twelve chairs in the room.", "The shop opens at nine in the morning.",
        "You can park the car behind the house.", "The meeting was moved to Thursday.",
        "We need paper, pens and an envelope.", "The road turns left after the bridge.",
        "My number is written on the first page.", "The kitchen has two windows and a door.",
    ),
    "sadness": (
        "I miss my grandmother so much.", "I feel so alone since you left.",
        "My dog died last night, and I cannot stop crying.", "Nothing will ever be the same again.",
        "I am sorry, I have lost all hope.", "She never said goodbye to me.",
        "It hurts to think of those days.", "I am too sad to get out of bed.",
        "Nobody came to the funeral.", "My heart is broken, and I am tired.",
        "I failed again, I am worthless.", "We had to leave our home behind.",
    ),
}  # fmt: skip


def speak(text: str, voice: str, prosody: Prosody) -> tuple[list[float], int]:
    """Lets espeak-ng read a sentence; returns samples and sample rate."""
    command = [
        "espeak-ng", "--stdout", "-v", voice, "-s", str(prosody.speed), "-p", str(prosody.pitch),
        "-a", str(prosody.loudness), "-m", f'<prosody range="{prosody.pitch_range}%">{text}</prosody>',
    ]  # fmt: skip
    wav = subprocess.run(command, check=True, capture_output=True).stdout
    return soundfile.read(io.BytesIO(wav), dtype="float32")


def main() -> None:
    """Writes the clips and the table that names them."""
    (HERE / "clips").mkdir(exist_ok=True)
    rows = []
    for number, (speaker, (voice, gender, split)) in enumerate(VOICES.items()):
        for emotion, sentences in SENTENCES.items():
            for take, text in enumerate(sentences[2 * number : 2 * number + 2], start=1):
                samples, sample_rate = speak(text, voice, PROSODY[emotion])
                name = f"clips/{speaker}_{emotion}_{take}.flac"
                soundfile.write(HERE / name, soxr.resample(samples, sample_rate, SAMPLE_RATE), SAMPLE_RATE)
                rows.append({"file": name, "label": emotion, "voice": speaker, "sex": gender, "set": split})
    with (HERE / "clips.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    print(f"{len(rows)} clips in {HERE / 'clips'}")


if __name__ == "__main__":
    main()

"""Makes the demo corpus: 80 clips read by espeak-ng, ten voices, four emotions in both prosody and words.

Needs the program espeak-ng (`apt-get install espeak-ng`). The repository contains the clips that this script made:

    python demo/make_corpus.py
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
    """Settings of espeak-ng: words per minute, pitch 0 to 99, pitch range in %, loudness 0 to 200."""

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
    "gus": ("en-us+m3", "male", "train"),
    "hana": ("en-us+f4", "female", "train"),
    "iris": ("en-gb+f1", "female", "test"),
    "jack": ("en-gb-scotland+m4", "male", "test"),
}
SENTENCES = {
    "anger": (
        "I am so angry with you right now.", "Stop it, you have ruined everything!",
        "How dare you speak to me like that!", "I hate it when you lie to me.",
        "Get out of my house this minute!", "This is outrageous, I will not accept it.",
        "You never listen, and I am furious.", "Who broke my window, you idiot?",
        "I am sick of your stupid excuses.", "Leave me alone, I am really mad.",
        "That was a disgusting thing to do to her.", "Shut up and give it back, now!",
        "Do not touch my things ever again!", "I am furious, you broke your promise.",
        "You cheated me, and I will not forget it.", "How could you be so careless?",
        "Be quiet, I have had enough of you!", "I am fed up with this terrible service.",
        "You had no right to read my letters!", "Give me my money back at once!",
    ),
    "happiness": (
        "I am so happy to see you again!", "What a wonderful surprise, thank you!",
        "We won the game, this is fantastic!", "I love this song, let us dance.",
        "That is the best news I have heard all year.", "Our baby smiled at me today, how lovely.",
        "I got the job, I am so excited!", "It is a beautiful day, and I feel great.",
        "Your present made me laugh with joy.", "We are going to the beach tomorrow, hurray!",
        "I am delighted with my new home.", "Congratulations, you did a brilliant job!",
        "I passed the exam, I am overjoyed!", "Thank you, these flowers are wonderful.",
        "What a lovely party, I am so glad I came.", "My best friend is getting married, hooray!",
        "I am thrilled that you called me today.", "The children laughed all afternoon, it was great fun.",
        "This cake is delicious, I love it!", "We finally found our cat, I am so relieved and happy!",
    ),
    "neutral": (
        "The train leaves at ten past four.", "Please put the books on the table.",
        "The office is on the second floor.", "I will send the report on Monday.",
        "There are twelve chairs in the room.", "The shop opens at nine in the morning.",
        "You can park the car behind the house.", "The meeting was moved to Thursday.",
        "We need paper, pens and an envelope.", "The road turns left after the bridge.",
        "My number is written on the first page.", "The kitchen has two windows and a door.",
        "The library closes at six in the evening.", "The bus stops opposite the bank.",
        "There is a ladder in the garage.", "The form has three pages and a map.",
        "The water is in the blue bottle.", "The lesson starts after the break.",
        "The parcel weighs about two kilograms.", "Turn on the lamp next to the door.",
    ),
    "sadness": (
        "I miss my grandmother so much.", "I feel so alone since you left.",
        "My dog died last night, and I cannot stop crying.", "Nothing will ever be the same again.",
        "I am sorry, I have lost all hope.", "She never said goodbye to me.",
        "It hurts to think of those days.", "I am too sad to get out of bed.",
        "Nobody came to the funeral.", "My heart is broken, and I am tired.",
        "I failed again, I am worthless.", "We had to leave our home behind.",
        "I lost my father in the spring.", "I cannot bear this empty house.",
        "They all forgot my birthday.", "I wept when I read her last letter.",
        "There is no point in trying any more.", "I feel so lonely in this city.",
        "We will never see him again.", "I regret everything, and I am in despair.",
    ),
}  # fmt: skip


def speak(text: str, voice: str, prosody: Prosody) -> tuple[list[float], int]:
    """Returns the samples of a sentence read by espeak-ng, and their sample rate."""
    command = [
        "espeak-ng", "--stdout", "-v", voice, "-s", str(prosody.speed), "-p", str(prosody.pitch),
        "-a", str(prosody.loudness), "-m", f'<prosody range="{prosody.pitch_range}%">{text}</prosody>',
    ]  # fmt: skip
    wav = subprocess.run(command, check=True, capture_output=True).stdout
    return soundfile.read(io.BytesIO(wav), dtype="float32")


def main() -> None:
    """Writes the clips and their table."""
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

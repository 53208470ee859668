"""Builds tokenizers for models trained from scratch; ``engines/text.py`` reads them."""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

UNKNOWN, END = "<unk>", "</s>"


def build_word_tokenizer(phrases: Iterable[str], vocab_size: int) -> Tokenizer:
    """Build a word-level tokenizer of the most frequent words, ordered by frequency and then by spelling.

    It normalises text as SigLIP's tokenizer does: lower case, no punctuation, single spaces. Its end token (id 1) is
    also the padding.
    """
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"[!-/:-@\[-`{-~]"), ""),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(vocab_size=vocab_size, special_tokens=[UNKNOWN, END], show_progress=False)
    tokenizer.train_from_iterator(sorted(phrases), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    return tokenizer

//! How easily an English text reads: words, sentences and syllables, counted by rule, and what Flesch made of them.

use serde::{Deserialize, Serialize};

/// What a text comes to. A text without words has no scores.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measures {
    /// Runs of letters and digits. Apostrophes and single hyphens between them belong to the word.
    pub words: usize,
    /// See [`sentences`].
    pub sentences: usize,
    /// See [`syllables`].
    pub syllables: usize,
    /// Flesch's reading ease: some 100 for a text that a child reads, below 30 for one that wants a scholar.
    pub reading_ease: Option<f64>,
    /// Flesch and Kincaid's grade: how many years at school the text asks for.
    pub grade: Option<f64>,
    /// The longest word, the first of several.
    pub longest_word: Option<String>,
}

/// Measures a text.
pub fn measure(text: &str) -> Measures {
    let words: Vec<&str> = words(text).collect();
    let sentences = sentences(text);
    let syllables = words.iter().map(|word| syllables(word)).sum();
    let ratios = (!words.is_empty()).then(|| {
        let words = words.len() as f64;
        (words / sentences as f64, syllables as f64 / words)
    });
    // Two decimals are more than the rules are worth.
    let round = |score: f64| (score * 100.0).round() / 100.0;
    let mut longest_word: Option<&str> = None;
    for word in &words {
        if longest_word.is_none_or(|longest| word.chars().count() > longest.chars().count()) {
            longest_word = Some(word);
        }
    }
    Measures {
        words: words.len(),
        sentences,
        syllables,
        reading_ease: ratios.map(|(length, weight)| round(206.835 - 1.015 * length - 84.6 * weight)),
        grade: ratios.map(|(length, weight)| round(0.39 * length + 11.8 * weight - 15.59)),
        longest_word: longest_word.map(str::to_owned),
    }
}

/// The words of a text.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        rest = &rest[rest.find(char::is_alphanumeric)?..];
        let mut end = 0;
        let mut chars = rest.char_indices().peekable();
        while let Some((at, c)) = chars.next() {
            let joins = matches!(c, '\'' | '\u{2019}' | '-') && chars.peek().is_some_and(|(_, c)| c.is_alphanumeric());
            if !c.is_alphanumeric() && !joins {
                break;
            }
            end = at + c.len_utf8();
        }
        let (word, behind) = rest.split_at(end);
        rest = behind;
        Some(word)
    })
}

/// Words whose full stop ends no sentence.
const ABBREVIATIONS: [&str; 14] =
    ["mr", "mrs", "ms", "messrs", "dr", "st", "col", "capt", "gen", "rev", "hon", "esq", "jun", "viz"];

/// How many sentences a text has. One ends at a full stop, an exclamation or a question mark, unless the text goes on
/// with a small letter (`"Is it let?" said his lady`) or the mark is the full stop of an abbreviation or of an initial.
/// What is left without a mark at the end is a sentence too, if there is a word in it.
fn sentences(text: &str) -> usize {
    let mut count = 0;
    let mut from = 0;
    for (at, mark) in text.match_indices(['.', '!', '?']) {
        let sentence = &text[from..at];
        let Some(last) = words(sentence).last() else { continue };
        let is_short = last.chars().count() == 1 && last != "I" && last.chars().all(char::is_uppercase);
        let is_abbreviation = is_short || ABBREVIATIONS.contains(&last.to_lowercase().as_str());
        if mark == "." && is_abbreviation && sentence.ends_with(last) {
            continue;
        }
        let behind = &text[at + 1..];
        // As in `3.50` or `example.org`.
        if behind.starts_with(char::is_alphanumeric) {
            continue;
        }
        if behind.chars().find(|c| c.is_alphanumeric()).is_some_and(char::is_lowercase) {
            continue;
        }
        count += 1;
        from = at + 1;
    }
    count + usize::from(words(&text[from..]).next().is_some())
}

/// How many syllables a word has, by these rules:
///
/// 1. The parts of a word with hyphens count each; a part without a letter counts its digits; `Mr`, `Mrs` and `Dr` are two.
/// 2. Each run of the vowels `a e i o u y` is a syllable. `y` before a vowel at the beginning is none, nor is the `u`
///    of `qu`.
/// 3. The suffixes `ly`, `ment`, `ments`, `ful`, `less` and `ness` count one, after what stands before them.
/// 4. A final `e` is silent after a consonant, unless that is an `l` after another one (`table`). So is the `e` of a
///    final `es`, but for a hiss before it (`houses`, `churches`), and of a final `ed`, but for `t` or `d` (`wanted`).
/// 5. Two vowels are two syllables in a final `ing` after a vowel (`being`), in `iet` (`quiet`), in `ia` and `iu` but
///    after a hiss (`material`, not `special`), in `io` but after a hiss, `l` or `n` (`curious`, not `opinion`), in
///    `ua` but after `g` or `q` (`usual`, not `language`), and in `ya` and `yo` after a vowel (`beyond`).
/// 6. The `s` of a genitive is heard with what stands before it, and by itself after a hiss (`James's`).
/// 7. There is at least one.
fn syllables(word: &str) -> usize {
    word.split('-').map(|part| syllables_of_part(&part.to_lowercase())).sum()
}

fn syllables_of_part(part: &str) -> usize {
    if matches!(part, "mr" | "mrs" | "dr") {
        return 2;
    }
    let letters: Vec<char> = part.chars().filter(|c| c.is_alphabetic()).map(plain).collect();
    if letters.is_empty() {
        return part.chars().filter(|c| c.is_alphanumeric()).count().max(1);
    }
    let is_genitive = part.ends_with("'s") || part.ends_with("\u{2019}s");
    match &letters[..] {
        [stem @ .., _] if is_genitive => {
            let is_heard = matches!(stem, [.., 's' | 'x' | 'z'] | [.., 's' | 'c' | 'g', 'e'] | [.., 's' | 'c', 'h']);
            syllables_of_letters(stem).max(1) + usize::from(is_heard)
        }
        letters => syllables_of_letters(letters).max(1),
    }
}

/// A letter without what is written above or below it, as far as English has it in foreign words.
fn plain(c: char) -> char {
    match c {
        'à' | 'á' | 'â' | 'ä' | 'æ' => 'a',
        'è' | 'é' | 'ê' | 'ë' => 'e',
        'ì' | 'í' | 'î' | 'ï' => 'i',
        'ò' | 'ó' | 'ô' | 'ö' | 'œ' => 'o',
        'ù' | 'ú' | 'û' | 'ü' => 'u',
        other => other,
    }
}

fn is_vowel(c: char) -> bool {
    matches!(c, 'a' | 'e' | 'i' | 'o' | 'u' | 'y')
}

fn is_hiss(c: char) -> bool {
    matches!(c, 'c' | 'g' | 's' | 't' | 'x' | 'z')
}

fn syllables_of_letters(letters: &[char]) -> usize {
    for suffix in ["ly", "ments", "ment", "ful", "less", "ness"] {
        let suffix: Vec<char> = suffix.chars().collect();
        if let Some(stem) = letters.strip_suffix(&suffix[..])
            && stem.len() > 1
            && stem.iter().any(|c| is_vowel(*c))
        {
            return syllables_of_letters(stem).max(1) + 1;
        }
    }
    let sounds = |at: usize| {
        let next = letters.get(at + 1).copied();
        match letters[at] {
            'y' if at == 0 => !next.is_some_and(is_vowel),
            'u' if at > 0 && letters[at - 1] == 'q' => false,
            c => is_vowel(c),
        }
    };
    let mut count = 0;
    for at in 0..letters.len() {
        let follows = at > 0 && sounds(at - 1);
        if sounds(at) && (!follows || parts(letters, at)) {
            count += 1;
        }
    }
    count - usize::from(count > 1 && has_silent_end(letters))
}

/// Whether the vowel at this place begins a syllable though one stands before it.
fn parts(letters: &[char], at: usize) -> bool {
    let before = at.checked_sub(2).map(|before| letters[before]);
    let hiss = before.is_some_and(is_hiss);
    match (letters[at - 1], letters[at]) {
        ('i', 'e') => letters.get(at + 1) == Some(&'t'),
        ('i', 'a' | 'u') => !hiss,
        ('i', 'o') => !hiss && !matches!(before, Some('l' | 'n')),
        ('u', 'a') => !matches!(before, Some('g' | 'q')),
        ('y', 'a' | 'o') => before.is_some_and(is_vowel),
        (_, 'i') => letters[at..] == ['i', 'n', 'g'],
        _ => false,
    }
}

/// Whether the last `e` is written and not heard.
fn has_silent_end(letters: &[char]) -> bool {
    let (stem, ending) = match letters {
        [stem @ .., 'e'] => (stem, ' '),
        [stem @ .., 'e', ending @ ('s' | 'd')] => (stem, *ending),
        _ => return false,
    };
    match (stem, ending) {
        ([.., before, 'l'], _) if !is_vowel(*before) && *before != 'l' => false,
        ([.., 'c' | 's', 'h'], 's') => false,
        ([.., last], 's') if is_hiss(*last) && *last != 't' => false,
        ([.., 't' | 'd'], 'd') => false,
        ([.., last], _) => !is_vowel(*last),
        ([], _) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_letters_and_what_joins_them() {
        let text = "\"Dear sir,--I don't, at tea-time, read 1,813 novels\u{2014}Lady Lucas's 'naïve' ones--\"";
        let expected = [
            "Dear", "sir", "I", "don't", "at", "tea-time", "read", "1", "813", "novels", "Lady", "Lucas's", "naïve",
            "ones",
        ];
        assert_eq!(words(text).collect::<Vec<_>>(), expected);
        assert_eq!(words(" -- '' ...").count(), 0);
    }

    #[test]
    fn a_sentence_ends_where_a_reader_would_end_it() {
        for (text, count) in [
            ("", 0),
            ("...", 0),
            ("He was silent", 1),
            ("He was silent.", 1),
            ("\"Is it let?\" said his lady. \"It is!\"", 2),
            ("Mr. and Mrs. Bennet, of St. James's, came. They left.", 2),
            ("Mr. J. Bennet came. So did I. Nobody else did.", 3),
            ("What?! Never... She laughed. And then--", 4),
            ("It cost 3.50 at example.org. Cheap.", 2),
            ("\"Oh! my dear!\" she cried.", 1),
        ] {
            assert_eq!(sentences(text), count, "{text}");
        }
    }

    #[test]
    fn syllables_are_counted_as_they_are_spoken() {
        let table = [
            (1, "a I the you yes he her made makes walked lived loved whole rules friend quite queen strength sense"),
            (1, "please style through thought clothes Jane's friend's rhythm s St"),
            (2, "being going seeing houses churches wanted added table tables settled people only merely quiet lady"),
            (2, "ladies Bennet George's James's special patient question language acquaint Mr Mrs yellow"),
            (2, "hopeful careless kindness moments beyond tea-time reply young-er 18"),
            (3, "curious usual family happily opinion settlement Collins's possession remember various"),
            (3, "neighbourhood agreement to-morrow good-humoured uncommon tete-a-tete"),
            (4, "material superior society situation variety Elizabeth amiable self-importance"),
            (5, "universally opportunity extraordinary"),
        ];
        for (count, words) in table {
            for word in words.split(' ') {
                assert_eq!(syllables(word), count, "{word}");
            }
        }
    }

    #[test]
    fn scores_are_those_of_the_formulas() {
        let text = "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be \
                    in want of a wife.";
        let measures = measure(text);
        let expected = Measures {
            words: 23,
            sentences: 1,
            syllables: 33,
            // 206.835 - 1.015 * 23 - 84.6 * 33 / 23
            reading_ease: Some(62.11),
            // 0.39 * 23 + 11.8 * 33 / 23 - 15.59
            grade: Some(10.31),
            longest_word: Some("acknowledged".to_owned()),
        };
        assert_eq!(measures, expected);
        assert_eq!(
            serde_json::from_str::<Measures>(&serde_json::to_string(&expected).expect("JSON")).ok(),
            Some(expected)
        );
    }

    #[test]
    fn a_text_without_words_has_no_scores() {
        for text in ["", "--", "?!"] {
            let measures = measure(text);
            assert_eq!((measures.words, measures.sentences, measures.syllables), (0, 0, 0));
            assert_eq!((measures.reading_ease, measures.grade, measures.longest_word), (None, None, None));
        }
    }

    #[test]
    fn any_text_is_measured() {
        for text in
            ["日本語。", "\u{301}e\u{301}", "don'", "-a-", "e es ed le", "ß İ ﬁ", "1st 2nd", "a.b.c", "q'u", "'s"]
        {
            let measures = measure(text);
            assert!(measures.syllables >= measures.words, "{text}: {measures:?}");
            assert!(measures.words == 0 || measures.sentences > 0, "{text}: {measures:?}");
        }
    }
}

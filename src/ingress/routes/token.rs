//! Telling a secret in a path from a name in it.

/// Shorter ones are guessed before they are told.
const LENGTH: usize = 16;
/// How often digits, small and capital letters take turns in it: words, years and versions hardly do, and what was drawn at random does with
/// every other character.
const TURNS: usize = 5;

/// Whether a segment of a path looks as if it had been drawn at random, like `9f2b6c04-…`. A guess.
pub fn looks_random(segment: &str) -> bool {
    let words = || segment.split(|character: char| !character.is_ascii_alphanumeric());
    let turns = |word: &str| {
        let next = word.as_bytes().iter().skip(1);
        word.bytes().zip(next).filter(|(one, next)| kind(*one) != kind(**next) && !begins_a_name(*one, **next)).count()
    };
    words().map(str::len).sum::<usize>() >= LENGTH && words().map(turns).sum::<usize>() >= TURNS
}

fn kind(byte: u8) -> u8 {
    match byte {
        b'0'..=b'9' => 0,
        b'a'..=b'z' => 1,
        _ => 2,
    }
}

fn begins_a_name(one: u8, next: u8) -> bool {
    one.is_ascii_uppercase() && next.is_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_drawn_at_random_is_told_from_names() {
        for token in [
            "9f2b6c0412de77a85bc3d1e0f4a69b21",
            "4d1f9521-50e5-447d-bf5f-c3292995a727",
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLjSw",
            "XXdq3TmVvAa7bK9f",
            "sk-live.b7Rk2mQz8Wp4tYxJ",
        ] {
            assert!(looks_random(token), "{token}");
        }
        for name in [
            "",
            "cdr",
            "webhook",
            "telecmi-cdr-webhooks-v2-production",
            "customer-2024-11-28-eu-west-1",
            "{secret}",
            "AnalyticsPipelineForTelecmi2024",
            "Sales_2222223",
            "c3po-r2d2",
            "2222223333334444444",
        ] {
            assert!(!looks_random(name), "{name}");
        }
    }
}

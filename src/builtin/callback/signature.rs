//! Signatures after Standard Webhooks, by which a receiver knows who sent a message, and when.

use base64::Engine as _;
use base64::alphabet::STANDARD as ALPHABET;
use base64::engine::general_purpose::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Reads secrets with the padding at their end and without: both are in use.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &ALPHABET,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A key that the receiver has too. It is never shown.
#[derive(Clone)]
pub(super) struct Secret(Vec<u8>);

impl Secret {
    /// What a secret must be.
    pub(super) const FORM: &str = "`whsec_` and then 24 to 64 bytes in base64";

    /// Reads a secret, if it has the form that the specification says.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let key = LENIENT.decode(text.strip_prefix("whsec_")?).ok()?;
        (24..=64).contains(&key.len()).then_some(Self(key))
    }

    fn sign(&self, id: &str, at_s: i64, body: &[u8]) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes a key of any length");
        mac.update(format!("{id}.{at_s}.").as_bytes());
        mac.update(body);
        format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
    }
}

/// The header `webhook-signature`: one signature for each secret, so that secrets can be changed without a gap. None
/// without a secret.
pub(super) fn signatures(secrets: &[Secret], id: &str, at_s: i64, body: &[u8]) -> Option<String> {
    let signatures: Vec<String> = secrets.iter().map(|secret| secret.sign(id, at_s, body)).collect();
    (!signatures.is_empty()).then(|| signatures.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> Secret {
        Secret::parse(text).expect("a secret of the right form")
    }

    /// From github.com/standard-webhooks/standard-webhooks at b2fa7b8719fb75d326b591077f5d1b385cfcdfae: the first from
    /// libraries/javascript/src/webhook.test.ts ("sign function works", the same in its Go, Java and C# tests), the
    /// second from libraries/rust/src/lib.rs (`test_sign`).
    #[test]
    fn the_published_vectors_of_standard_webhooks_are_met() {
        let vectors = [
            (
                "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
                "msg_p5jXN8AQM9LWM0D4loKWxJek",
                1_614_265_330,
                r#"{"test": 2432232314}"#,
                "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
            ),
            (
                "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
                "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk",
                1_649_367_553,
                r#"{"email":"test@example.com","username":"test_user"}"#,
                "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=",
            ),
        ];
        for (key, id, at_s, body, expected) in vectors {
            assert_eq!(signatures(&[secret(key)], id, at_s, body.as_bytes()).as_deref(), Some(expected));
        }
        let both = vectors.map(|(key, ..)| secret(key));
        let header = signatures(&both, vectors[0].1, vectors[0].2, vectors[0].3.as_bytes()).expect("two signatures");
        let (first, second) = header.split_once(' ').expect("two signatures");
        assert_eq!(first, vectors[0].4);
        assert!(second.starts_with("v1,") && second != first);
        assert_eq!(signatures(&[], "id", 0, b""), None);
    }

    #[test]
    fn a_secret_has_one_form() {
        let of = |bytes: usize| format!("whsec_{}", STANDARD.encode(vec![0xfb; bytes]));
        for bytes in 24..=64 {
            let padded = of(bytes);
            assert!(Secret::parse(&padded).is_some(), "{bytes} bytes");
            assert!(Secret::parse(padded.trim_end_matches('=')).is_some(), "{bytes} bytes without padding");
        }
        let bad = [
            String::new(),
            "whsec_".to_owned(),
            of(23),
            of(65),
            of(24).replace("whsec_", ""),
            of(24).replace("whsec_", "whsk_"),
            of(24).replace("whsec_", "WHSEC_"),
            of(24).replace('+', "-").replace('/', "_"),
            of(24) + "\n",
            format!(" {}", of(24)),
            "whsec_not base64 at all, though long enough for one".to_owned(),
        ];
        for text in bad {
            assert!(Secret::parse(&text).is_none(), "{text}");
        }
    }
}

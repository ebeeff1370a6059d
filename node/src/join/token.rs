//! The text of a join token: whom to ask, whom to trust, and a secret.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use drover_proto::admin::JoinToken;
use prost::Message as _;

use super::Error;

/// Names the format.
const PREFIX: &str = "drover-join-1.";
/// A token with several authorities and 64 contacts has a few kilobytes.
const CHARACTERS_MAX: usize = 64 * 1024;

pub fn encode(token: &JoinToken) -> String {
    format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(token.encode_to_vec()))
}

pub fn decode(text: &str) -> Result<JoinToken, Error> {
    let problem = |problem| Error::Token { problem };
    let text = text.trim();
    if text.len() > CHARACTERS_MAX {
        return Err(problem("it is too long"));
    }
    let body = text.strip_prefix(PREFIX).ok_or(problem("it does not begin with drover-join-1."))?;
    let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|_| problem("it is damaged"))?;
    let token = JoinToken::decode(&*bytes).map_err(|_| problem("it is damaged"))?;
    if token.authorities.is_empty() || token.contacts.is_empty() || token.secret.is_empty() {
        return Err(problem("it is cut short"));
    }
    Ok(token)
}

/// What a node presents with its request.
pub fn credential(token: &JoinToken) -> String {
    format!("Join {}.{}", token.id, hex::encode(&token.secret))
}

/// The id and the secret of a credential, without its scheme.
pub fn parse_credential(text: &str) -> Option<(&str, Vec<u8>)> {
    let (id, secret) = text.split_once('.')?;
    Some((id, hex::decode(secret).ok()?))
}

#[cfg(test)]
mod tests {
    use drover_proto::admin::JoinContact;

    use super::*;

    fn token() -> JoinToken {
        let contact =
            JoinContact { number: 1, generation: 0, admin_address: "hub:7443".to_owned() };
        JoinToken {
            id: "4f".to_owned(),
            secret: vec![1; 32],
            authorities: vec![vec![2; 300]],
            contacts: vec![contact],
        }
    }

    #[test]
    fn a_token_survives_its_text() {
        let text = encode(&token());
        assert_eq!(decode(&format!(" {text}\n")).expect("it is whole"), token());
        let presented = credential(&token());
        let presented = presented.strip_prefix("Join ").expect("a scheme");
        assert_eq!(parse_credential(presented), Some(("4f", vec![1; 32])));
    }

    #[test]
    fn a_token_that_is_not_whole_is_refused() {
        let text = encode(&token());
        for bad in ["", "drover-join-1.", "drover-join-2.AAAA", &text[..text.len() / 2], &text[1..]]
        {
            assert!(decode(bad).is_err(), "{bad}");
        }
        assert!(decode(&format!("{PREFIX}{}", "A".repeat(CHARACTERS_MAX))).is_err());
    }
}

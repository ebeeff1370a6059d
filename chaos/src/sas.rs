//! Shared access signatures, as devices and back ends make them.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac as _};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::Sha256;

/// Longer than any run.
const LIFETIME_S: u64 = 24 * 3600;

/// A token for `resource` that is good for a day. `policy` names the policy whose key it is; `None` for a device's key.
pub fn token(resource: &str, key_base64: &str, policy: Option<&str>) -> anyhow::Result<String> {
    token_until(resource, key_base64, policy, now_s() + LIFETIME_S)
}

/// The same until a given second since 1970, past ones included.
pub fn token_until(
    resource: &str,
    key_base64: &str,
    policy: Option<&str>,
    expiry_s: u64,
) -> anyhow::Result<String> {
    let key = STANDARD.decode(key_base64).context("the key is not base64")?;
    let escaped = utf8_percent_encode(resource, NON_ALPHANUMERIC);
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).expect("HMAC takes keys of any length");
    mac.update(format!("{escaped}\n{expiry_s}").as_bytes());
    let signature = STANDARD.encode(mac.finalize().into_bytes());
    let signature = utf8_percent_encode(&signature, NON_ALPHANUMERIC);
    let policy = policy.map(|name| format!("&skn={name}")).unwrap_or_default();
    Ok(format!("SharedAccessSignature sr={escaped}&sig={signature}&se={expiry_s}{policy}"))
}

#[expect(
    clippy::disallowed_methods,
    reason = "a token's expiry is a date: there is no other source"
)]
fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is after 1970").as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_over_the_escaped_resource_and_the_expiry() {
        let token = token_until("hub/devices/d", "c2VjcmV0", None, 1_700_000_000).unwrap();
        let mut mac = Hmac::<Sha256>::new_from_slice(b"secret").unwrap();
        mac.update(b"hub%2Fdevices%2Fd\n1700000000");
        let expected = STANDARD.encode(mac.finalize().into_bytes());
        let expected = utf8_percent_encode(&expected, NON_ALPHANUMERIC);
        assert_eq!(
            token,
            format!("SharedAccessSignature sr=hub%2Fdevices%2Fd&sig={expected}&se=1700000000")
        );
    }
}

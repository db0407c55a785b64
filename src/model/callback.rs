//! Where a callback may go: the form of its address, which is checked when the job is enqueued and again when the
//! callback is delivered.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::Uri;

use crate::error::{Error, Result};

/// The longest address, in bytes.
pub(crate) const MAX_URL_BYTES: usize = 2048;

/// A receiver, read from an address in one place, so that what is checked is what is connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) uri: Uri,
    pub(crate) host: Host,
    pub(crate) port: u16,
}

/// Whom a receiver's address names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    /// Somebody whose addresses must be looked up.
    Name(String),
    Address(IpAddr),
}

/// Checks the form of a callback's address. Whether its host may be reached is seen at each delivery.
pub(crate) fn check_url(url: &str) -> Result<()> {
    Target::parse(url).map(drop)
}

impl Target {
    pub(crate) fn parse(url: &str) -> Result<Self> {
        if url.is_empty() || url.len() > MAX_URL_BYTES {
            return Err(invalid(format_args!("must be 1 to {MAX_URL_BYTES} bytes")));
        }
        if !url.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(invalid("must be ASCII without spaces and control characters; others are percent-encoded"));
        }
        let Some((scheme, rest)) = url.split_once("://") else {
            return Err(invalid("must begin with http:// or https://"));
        };
        let default_port = match scheme.to_ascii_lowercase().as_str() {
            "http" => 80,
            "https" => 443,
            _ => return Err(invalid("must begin with http:// or https://")),
        };
        if rest.contains('#') {
            return Err(invalid("must have no fragment, for it would not be sent"));
        }
        // The scheme alone is brought to lower case here: the HTTP client knows no other spelling of it.
        let uri: Uri =
            format!("{}://{rest}", scheme.to_ascii_lowercase()).parse().map_err(|_| invalid("must be a valid URL"))?;
        let authority = uri.authority().ok_or_else(|| invalid("must name a host"))?.as_str();
        if authority.contains('@') {
            return Err(invalid("must hold no user name and no password"));
        }
        // The part behind the last colon is the port, unless the colon is one of an IPv6 address.
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, Some(port)),
            _ => (authority, None),
        };
        let port = match port {
            None | Some("") => default_port,
            Some(digits) => port_of(digits).ok_or_else(|| invalid("must have a port from 1 to 65535"))?,
        };
        let host = Host::parse(host)
            .ok_or_else(|| invalid("must name its host by a name, by four decimal numbers or by IPv6 in brackets"))?;
        Ok(Self { uri, host, port })
    }
}

fn port_of(digits: &str) -> Option<u16> {
    // `parse` alone would take a plus sign.
    let port = digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())??;
    (port != 0).then_some(port)
}

impl Host {
    /// Reads a host. What some resolvers take for an IPv4 address (one number, hexadecimal, octal, three parts) is none
    /// here, nor is it a name.
    fn parse(host: &str) -> Option<Self> {
        if let Some(inner) = host.strip_prefix('[') {
            let address: Ipv6Addr = inner.strip_suffix(']')?.parse().ok()?;
            return Some(Self::Address(address.into()));
        }
        if let Ok(address) = host.parse::<Ipv4Addr>() {
            return Some(Self::Address(address.into()));
        }
        let name = host.strip_suffix('.').unwrap_or(host);
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        };
        // The rule of the URL standard: a host whose last label is a number is an IPv4 address or an error.
        let last = name.rsplit('.').next().unwrap_or(name);
        let hexadecimal = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
        let is_number = last.bytes().all(|byte| byte.is_ascii_digit())
            || hexadecimal.is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        (name.len() <= 253 && name.split('.').all(is_label) && !is_number).then(|| Self::Name(host.to_owned()))
    }
}

fn invalid(rule: impl fmt::Display) -> Error {
    Error::invalid("callback_url", rule)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn good_addresses_are_read() -> Result<()> {
        let name = |name: &str| Host::Name(name.to_owned());
        let address = |text: &str| Host::Address(text.parse().expect("an address"));
        let good = [
            ("http://example.com", name("example.com"), 80),
            ("https://example.com/hooks?job=1&x=%20", name("example.com"), 443),
            ("HTTPS://Example.COM/", name("Example.COM"), 443),
            ("https://example.com:8443/a//b/../c", name("example.com"), 8443),
            ("https://example.com:", name("example.com"), 443),
            ("http://example.com.:80", name("example.com."), 80),
            ("http://localhost:65535", name("localhost"), 65535),
            ("http://my_host-1.internal/", name("my_host-1.internal"), 80),
            ("http://1.example", name("1.example"), 80),
            ("http://example.0xg/", name("example.0xg"), 80),
            ("http://xn--bcher-kva.example", name("xn--bcher-kva.example"), 80),
            ("http://127.0.0.1:8080/x", address("127.0.0.1"), 8080),
            ("http://[::1]/", address("::1"), 80),
            ("http://[::FFFF:127.0.0.1]:81", address("::ffff:127.0.0.1"), 81),
            ("https://example.com/a@b:c", name("example.com"), 443),
            ("https://example.com?url=http://127.0.0.1/", name("example.com"), 443),
        ];
        for (url, host, port) in good {
            let target = Target::parse(url)?;
            assert_eq!((&target.host, target.port), (&host, port), "{url}");
            assert!(target.uri.scheme_str().is_some_and(|scheme| ["http", "https"].contains(&scheme)), "{url}");
            assert_eq!(Target::parse(&target.uri.to_string())?.host, host, "what is read reads back the same");
        }
        Ok(())
    }

    #[test]
    fn bad_addresses_are_refused_by_the_name_of_the_field() {
        let long = format!("http://example.com/{}", "a".repeat(MAX_URL_BYTES));
        let label = format!("http://{}.example/", "a".repeat(64));
        let name = format!("http://{}/", "a.".repeat(127) + "a");
        let bad = [
            ("", "must be 1 to 2048 bytes"),
            (&long, "must be 1 to 2048 bytes"),
            ("None", "must begin with http"),
            ("example.com/x", "must begin with http"),
            ("//example.com/x", "must begin with http"),
            ("/x", "must begin with http"),
            ("ftp://example.com/", "must begin with http"),
            ("file:///etc/passwd", "must begin with http"),
            ("javascript:alert(1)", "must begin with http"),
            ("unix:///var/run/x", "must begin with http"),
            ("http:/example.com", "must begin with http"),
            ("http:example.com", "must begin with http"),
            ("://example.com", "must begin with http"),
            (" http://example.com", "must be ASCII"),
            ("http://example.com/a b", "must be ASCII"),
            ("http://example.com/\r\nx: y", "must be ASCII"),
            ("http://example.com/\n", "must be ASCII"),
            ("http://example.com/\t", "must be ASCII"),
            ("http://example.com/\0", "must be ASCII"),
            ("http://example.com/\u{7f}", "must be ASCII"),
            ("http://b\u{fc}cher.example/", "must be ASCII"),
            ("http://example.com/\u{fc}", "must be ASCII"),
            ("http://127\u{3002}0.0.1/", "must be ASCII"),
            ("http://", "must"),
            ("http:///x", "must"),
            ("http://?x", "must"),
            ("http://:80/", "must"),
            ("http://example.com/#top", "must have no fragment"),
            ("http://example.com#@127.0.0.1/", "must have no fragment"),
            ("http://user@example.com/", "must hold no user name"),
            ("http://user:secret@example.com/", "must hold no user name"),
            ("http://@example.com/", "must hold no user name"),
            ("http://example.com@127.0.0.1/", "must hold no user name"),
            ("http://example.com:0/", "must have a port"),
            ("http://example.com:65536/", "must have a port"),
            ("http://example.com:99999999999/", "must have a port"),
            ("http://example.com:+80/", "must"),
            ("http://example.com:80:90/", "must"),
            ("http://example.com:x/", "must"),
            ("http://::1/", "must"),
            ("http://[::1/", "must"),
            ("http://[::1]x/", "must"),
            ("http://[::1%25eth0]/", "must"),
            ("http://[v1.a]/", "must"),
            ("http://[127.0.0.1]/", "must"),
            ("http://example.com\\@127.0.0.1/", "must"),
            // What `inet_aton` takes for 127.0.0.1, and what looks like it.
            ("http://2130706433/", "must name its host by"),
            ("http://0x7f000001/", "must name its host by"),
            ("http://0X7F000001/", "must name its host by"),
            ("http://017700000001/", "must name its host by"),
            ("http://0x7f.1/", "must name its host by"),
            ("http://0x7f.0.0.0x1/", "must name its host by"),
            ("http://127.1/", "must name its host by"),
            ("http://127.0.1/", "must name its host by"),
            ("http://0177.0.0.1/", "must name its host by"),
            ("http://127.0.0.01/", "must name its host by"),
            ("http://127.0.0.1./", "must name its host by"),
            ("http://127.0.0.256/", "must name its host by"),
            ("http://1.2.3.4.5/", "must name its host by"),
            ("http://example.1/", "must name its host by"),
            ("http://example.0x/", "must name its host by"),
            ("http://0/", "must name its host by"),
            ("http://%31%32%37.0.0.1/", "must"),
            ("http://./", "must name its host by"),
            ("http://example..com/", "must name its host by"),
            ("http://.example.com/", "must name its host by"),
            ("http://exa$mple.com/", "must name its host by"),
            ("http://a,b/", "must name its host by"),
            (&label, "must name its host by"),
            (&name, "must name its host by"),
        ];
        for (url, rule) in bad {
            let error = check_url(url).expect_err(url);
            assert_eq!(error.kind(), ErrorKind::Invalid, "{url}");
            assert!(error.to_string().starts_with(&format!("callback_url: {rule}")), "{url}: {error}");
        }
    }

    #[test]
    fn an_error_does_not_repeat_what_it_refuses() {
        let error = check_url("https://user:hunter2@example.com/").expect_err("a password");
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }
}

//! Which addresses of the internet are open to everybody.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Networks that are no public place, from the special-purpose registry of the IANA (RFC 6890) and from practice.
const CLOSED_V4: [(Ipv4Addr, u32); 16] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),        // this network, RFC 791
    (Ipv4Addr::new(10, 0, 0, 0), 8),       // private, RFC 1918
    (Ipv4Addr::new(100, 64, 0, 0), 10),    // shared behind a carrier's NAT, RFC 6598
    (Ipv4Addr::new(127, 0, 0, 0), 8),      // loopback
    (Ipv4Addr::new(168, 63, 129, 16), 32), // the platform channel of Azure's virtual machines, public in form only
    (Ipv4Addr::new(169, 254, 0, 0), 16),   // link-local, and the metadata of most clouds
    (Ipv4Addr::new(172, 16, 0, 0), 12),    // private, RFC 1918
    (Ipv4Addr::new(192, 0, 0, 0), 24),     // protocol assignments, RFC 6890
    (Ipv4Addr::new(192, 0, 2, 0), 24),     // documentation, RFC 5737
    (Ipv4Addr::new(192, 88, 99, 0), 24),   // relays of 6to4, RFC 7526
    (Ipv4Addr::new(192, 168, 0, 0), 16),   // private, RFC 1918
    (Ipv4Addr::new(198, 18, 0, 0), 15),    // benchmarks, RFC 2544
    (Ipv4Addr::new(198, 51, 100, 0), 24),  // documentation, RFC 5737
    (Ipv4Addr::new(203, 0, 113, 0), 24),   // documentation, RFC 5737
    (Ipv4Addr::new(224, 0, 0, 0), 4),      // multicast
    (Ipv4Addr::new(240, 0, 0, 0), 4),      // reserved, and broadcast
];

/// The part of IPv6 that is given out. All else is special: loopback, unique local, link-local, site-local, multicast.
const GIVEN_OUT_V6: (Ipv6Addr, u32) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

/// Networks within it that are no public place.
const CLOSED_V6: [(Ipv6Addr, u32); 3] = [
    // Protocol assignments, RFC 2928: Teredo, benchmarks, identifiers that nobody routes.
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    (Ipv6Addr::new(0x2001, 0x0db8, 0, 0, 0, 0, 0, 0), 32), // documentation, RFC 3849
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),      // documentation, RFC 9637
];

/// Whether everybody may be reached at this address, so that nobody gains by having us reach it.
pub(super) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => match embedded(address) {
            Some(embedded) => is_public_v4(embedded),
            None => is_in_v6(address, GIVEN_OUT_V6) && !CLOSED_V6.into_iter().any(|network| is_in_v6(address, network)),
        },
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let is_in = |(network, length): (Ipv4Addr, u32)| {
        let mask = u32::MAX << (32 - length);
        address.to_bits() & mask == network.to_bits() & mask
    };
    !CLOSED_V4.into_iter().any(is_in)
}

fn is_in_v6(address: Ipv6Addr, (network, length): (Ipv6Addr, u32)) -> bool {
    let mask = u128::MAX << (128 - length);
    address.to_bits() & mask == network.to_bits() & mask
}

/// The IPv4 address that one of IPv6 stands for: behind it is the same host. Of NAT64 that is true for the well-known
/// prefix alone: where an address lies under the local one (64:ff9b:1::/48), its network decides, so that stays closed.
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let segments = address.segments();
    let [.., a, b, c, d] = address.octets();
    match segments {
        // Mapped (RFC 4291), compatible (the same, obsolete; :: and ::1 have its form), translated by NAT64 (RFC 6052).
        [0, 0, 0, 0, 0, 0xffff | 0, _, _] | [0x64, 0xff9b, 0, 0, 0, 0, _, _] => Some(Ipv4Addr::new(a, b, c, d)),
        // 6to4 (RFC 3056).
        [0x2002, high, low, ..] => {
            let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
            Some(Ipv4Addr::new(a, b, c, d))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first and the last address of each closed IPv4 network, and the neighbours of both where they are open.
    const NETWORKS: [(&str, &str, Option<&str>, Option<&str>); 17] = [
        ("0.0.0.0", "0.255.255.255", None, Some("1.0.0.0")),
        ("10.0.0.0", "10.255.255.255", Some("9.255.255.255"), Some("11.0.0.0")),
        ("100.64.0.0", "100.127.255.255", Some("100.63.255.255"), Some("100.128.0.0")),
        ("127.0.0.0", "127.255.255.255", Some("126.255.255.255"), Some("128.0.0.0")),
        ("168.63.129.16", "168.63.129.16", Some("168.63.129.15"), Some("168.63.129.17")),
        ("169.254.0.0", "169.254.255.255", Some("169.253.255.255"), Some("169.255.0.0")),
        ("172.16.0.0", "172.31.255.255", Some("172.15.255.255"), Some("172.32.0.0")),
        ("192.0.0.0", "192.0.0.255", Some("191.255.255.255"), Some("192.0.1.0")),
        ("192.0.2.0", "192.0.2.255", Some("192.0.1.255"), Some("192.0.3.0")),
        ("192.88.99.0", "192.88.99.255", Some("192.88.98.255"), Some("192.88.100.0")),
        ("192.168.0.0", "192.168.255.255", Some("192.167.255.255"), Some("192.169.0.0")),
        ("198.18.0.0", "198.19.255.255", Some("198.17.255.255"), Some("198.20.0.0")),
        ("198.51.100.0", "198.51.100.255", Some("198.51.99.255"), Some("198.51.101.0")),
        ("203.0.113.0", "203.0.113.255", Some("203.0.112.255"), Some("203.0.114.0")),
        ("224.0.0.0", "239.255.255.255", Some("223.255.255.255"), None),
        ("240.0.0.0", "255.255.255.254", None, None),
        ("255.255.255.255", "255.255.255.255", None, None),
    ];

    /// Every form in which an IPv6 address carries one of IPv4.
    fn forms(address: Ipv4Addr) -> [IpAddr; 6] {
        let [a, b, c, d] = address.octets();
        let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        [
            address.into(),
            Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, high, low).into(),
            Ipv6Addr::new(0, 0, 0, 0, 0, 0, high, low).into(),
            Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low).into(),
            Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1).into(),
            Ipv6Addr::new(0x2002, high, low, 0xffff, 1, 2, 3, 4).into(),
        ]
    }

    #[test]
    fn closed_networks_are_closed_to_their_edges_in_every_form() {
        let read = |text: &str| text.parse::<Ipv4Addr>().expect("an address");
        for (first, last, before, after) in NETWORKS {
            let (first, last) = (read(first), read(last));
            let middle = Ipv4Addr::from_bits(first.to_bits() + (last.to_bits() - first.to_bits()) / 2);
            for address in [first, middle, last].into_iter().flat_map(forms) {
                assert!(!is_public(address), "{address}");
            }
            for address in [before, after].into_iter().flatten().map(read).flat_map(forms) {
                assert!(is_public(address), "{address}");
            }
        }
    }

    #[test]
    fn every_address_of_ipv4_is_judged_like_a_plain_reading_of_the_list() {
        // One address of each /16, and of each /24 in those that are divided finer.
        let is_closed = |[a, b, c, d]: [u8; 4]| {
            matches!(
                (a, b, c),
                (0 | 10 | 127 | 224..=255, _, _)
                    | (100, 64..=127, _)
                    | (169, 254, _)
                    | (172, 16..=31, _)
                    | (192, 168, _)
                    | (192, 0, 0 | 2)
                    | (192, 88, 99)
                    | (198, 18 | 19, _)
                    | (198, 51, 100)
                    | (203, 0, 113)
            ) || [a, b, c, d] == [168, 63, 129, 16]
        };
        for high in 0..=u16::MAX {
            let [a, b] = high.to_be_bytes();
            for c in [0, 1, 2, 63, 64, 99, 100, 113, 128, 129, 255] {
                for d in [0, 1, 16, 255] {
                    let address = Ipv4Addr::new(a, b, c, d);
                    assert_eq!(is_public(address.into()), !is_closed([a, b, c, d]), "{address}");
                }
            }
        }
    }

    #[test]
    fn ipv6_is_public_where_it_is_given_out_and_not_special() {
        let closed = [
            "::",
            "::1",
            "::2",
            "::7f00:1",
            "::ffff:7f00:1",
            "::ffff:0:7f00:1",
            "::ffff:0:808:808",
            "::1:0:0",
            "64:ff9b::7f00:1",
            "64:ff9b::a00:1",
            "64:ff9b:1::",
            "64:ff9b:1::808:808",
            "64:ff9b:1:808:8:800::",
            "64:ff9b:1:ffff:ffff:ffff:ffff:ffff",
            "64:ff9b:0:0:0:1:808:808",
            "100::1",
            "1fff:ffff::1",
            "2001::",
            "2001:0:4136:e378:8000:63bf:3fff:fdd2",
            "2001:0:ffff:ffff:ffff:ffff:ffff:ffff",
            "2001:2::1",
            "2001:10::1",
            "2001:20::1",
            "2001:1ff:ffff::1",
            "2001:db8::",
            "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff",
            "2002:7f00:1::1",
            "2002:a00:1::",
            "2002:c0a8:101::",
            "2002:a9fe:a9fe::1",
            "3fff::1",
            "3fff:fff:ffff::1",
            "4000::1",
            "5f00::1",
            "fbff::1",
            "fc00::",
            "fd00:ec2::254",
            "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            "fe00::1",
            "fe80::",
            "fe80::1",
            "febf:ffff::1",
            "fec0::1",
            "feff:ffff::1",
            "ff00::",
            "ff02::1",
            "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        ];
        let open = [
            "2000::1",
            "2001:200::1",
            "2001:4860:4860::8888",
            "2001:db7:ffff::1",
            "2001:db9::1",
            "2002:808:808::1",
            "2003::1",
            "2606:4700::1111",
            "2a00:1450:4001::200e",
            "3ffe:ffff::1",
            "3fff:1000::1",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
        ];
        for (addresses, expected) in [(&closed[..], false), (&open[..], true)] {
            for text in addresses {
                let address: IpAddr = text.parse().expect(text);
                assert_eq!(is_public(address), expected, "{text}");
            }
        }
    }
}

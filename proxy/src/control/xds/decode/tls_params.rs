//! `TlsParameters`: versions and cipher suites.

use attache_proto::envoy::extensions::transport_sockets::tls::v3::{
    TlsParameters, tls_parameters::TlsProtocol,
};

use super::common::{enumeration, unsupported};
use super::context::Context;
use super::error::{At, DecodeError};
use crate::model::listener::{TlsParams, TlsVersion};
use crate::tls::tls12_suites;

/// Suites that Envoy knows and that are not spoken here: no forward secrecy, or CBC.
const UNSPOKEN: [&str; 9] = [
    "ECDHE-ECDSA-AES128-SHA",
    "ECDHE-ECDSA-AES256-SHA",
    "ECDHE-RSA-AES128-SHA",
    "ECDHE-RSA-AES256-SHA",
    "AES128-GCM-SHA256",
    "AES128-SHA",
    "AES256-GCM-SHA384",
    "AES256-SHA",
    "DES-CBC3-SHA",
];

/// Versions and suites. `TLS_AUTO` and absence are TLS 1.2 to 1.3 on both sides, a stated deviation: Envoy as
/// a client stops at 1.2.
///
/// # Errors
/// Versions below 1.2 only, an unknown suite, no suite left, curves and signatures.
pub(super) fn decode(
    params: Option<&TlsParameters>,
    at: &At<'_>,
    ctx: &mut Context<'_>,
) -> Result<TlsParams, DecodeError> {
    let mut decoded = TlsParams::default();
    let Some(params) = params else {
        return Ok(decoded);
    };
    unsupported(
        at,
        &[
            (!params.ecdh_curves.is_empty(), "ecdh_curves"),
            (!params.signature_algorithms.is_empty(), "signature_algorithms"),
            (!params.compliance_policies.is_empty(), "compliance_policies"),
        ],
    )?;
    let min = at.field("tls_minimum_protocol_version");
    match enumeration(params.tls_minimum_protocol_version, &min)? {
        TlsProtocol::TlsAuto | TlsProtocol::TlSv12 => {}
        TlsProtocol::TlSv13 => decoded.min = TlsVersion::V1_3,
        TlsProtocol::TlSv10 | TlsProtocol::TlSv11 => ctx.notice(&min, "is carried out as TLSv1_2"),
    }
    let max = at.field("tls_maximum_protocol_version");
    match enumeration(params.tls_maximum_protocol_version, &max)? {
        TlsProtocol::TlsAuto | TlsProtocol::TlSv13 => {}
        TlsProtocol::TlSv12 => decoded.max = TlsVersion::V1_2,
        TlsProtocol::TlSv10 | TlsProtocol::TlSv11 => {
            return Err(max.refuse("is below TLSv1_2, which is the lowest version spoken here"));
        }
    }
    if decoded.min > decoded.max {
        return Err(min.refuse("is above tls_maximum_protocol_version"));
    }
    let at = at.field("cipher_suites");
    decoded.cipher_suites = suites(&params.cipher_suites, &at, ctx)?;
    // They limit TLS 1.2 only, so that from 1.3 on there is nothing to limit.
    if decoded.cipher_suites.is_empty() && !params.cipher_suites.is_empty() && decoded.min < TlsVersion::V1_3
    {
        let spoken: Vec<&str> = tls12_suites().into_iter().map(|(openssl, _)| openssl).collect();
        return Err(at.refuse(format!("leaves none of those spoken here: {}", spoken.join(", "))));
    }
    Ok(decoded)
}

fn suites(names: &[String], at: &At<'_>, ctx: &mut Context<'_>) -> Result<Vec<String>, DecodeError> {
    let spoken = if names.is_empty() {
        Vec::new()
    } else {
        tls12_suites()
    };
    let mut suites = Vec::new();
    for (index, entry) in names.iter().enumerate() {
        let at = at.index(index);
        // `[A|B]`: of equal preference. The order is the provider's here anyway.
        let group = entry.strip_prefix('[').and_then(|entry| entry.strip_suffix(']'));
        for name in group.unwrap_or(entry).split('|') {
            let known = spoken
                .iter()
                .find(|(openssl, iana)| *openssl == name || *iana == name);
            if let Some((_, iana)) = known {
                suites.push((*iana).to_owned());
            } else if UNSPOKEN.contains(&name) {
                ctx.notice(&at, &format!("{name} is not spoken here and left out"));
            } else {
                return Err(at.refuse(format!(
                    "{name:?} is no cipher suite of TLS 1.2 that is known here"
                )));
            }
        }
    }
    Ok(suites)
}

#[cfg(test)]
mod tests {
    use super::super::testing::Bench;
    use super::*;

    const AT: At<'static> = At::resource("Cluster", "c");

    fn read(change: impl Fn(&mut TlsParameters)) -> (Result<TlsParams, DecodeError>, usize) {
        let mut bench = Bench::default();
        let mut ctx = bench.context();
        let mut params = TlsParameters::default();
        change(&mut params);
        let decoded = decode(Some(&params), &AT, &mut ctx);
        (decoded, ctx.notices.len())
    }

    fn versions(min: TlsProtocol, max: TlsProtocol) -> (Result<TlsParams, DecodeError>, usize) {
        read(|params| {
            params.tls_minimum_protocol_version = min.into();
            params.tls_maximum_protocol_version = max.into();
        })
    }

    #[test]
    fn versions_are_raised_and_never_lowered() {
        assert_eq!(
            versions(TlsProtocol::TlsAuto, TlsProtocol::TlsAuto),
            (Ok(TlsParams::default()), 0)
        );
        for old in [TlsProtocol::TlSv10, TlsProtocol::TlSv11] {
            assert_eq!(versions(old, TlsProtocol::TlSv13), (Ok(TlsParams::default()), 1));
            let refused = versions(TlsProtocol::TlsAuto, old).0.unwrap_err();
            assert_eq!(refused.path, "tls_maximum_protocol_version");
        }
        let both = |version| versions(version, version).0.unwrap();
        assert_eq!(both(TlsProtocol::TlSv12).max, TlsVersion::V1_2);
        assert_eq!(both(TlsProtocol::TlSv13).min, TlsVersion::V1_3);
        assert!(versions(TlsProtocol::TlSv13, TlsProtocol::TlSv12).0.is_err());
        assert!(read(|params| params.tls_minimum_protocol_version = 7).0.is_err());
    }

    #[test]
    fn suites_by_either_name_and_none_by_accident() {
        let suites = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let (decoded, notices) = read(|params| params.cipher_suites.clone_from(&names));
            (decoded.map(|params| params.cipher_suites), notices)
        };
        let gcm = "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256".to_owned();
        let chacha = "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256".to_owned();
        let grouped = suites(&["[ECDHE-ECDSA-AES128-GCM-SHA256|ECDHE-RSA-CHACHA20-POLY1305]"]);
        assert_eq!(grouped, (Ok(vec![gcm.clone(), chacha]), 0));
        let mixed = suites(&["TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "AES256-SHA"]);
        assert_eq!(mixed, (Ok(vec![gcm]), 1));
        assert_eq!(suites(&["AES256-SHA"]).0.unwrap_err().path, "cipher_suites");
        assert_eq!(
            suites(&["AES256-SHA", "HIGH"]).0.unwrap_err().path,
            "cipher_suites[1]"
        );
        let only_1_3 = read(|params| {
            params.cipher_suites = vec!["AES256-SHA".to_owned()];
            params.tls_minimum_protocol_version = TlsProtocol::TlSv13.into();
        });
        assert_eq!(only_1_3.0.unwrap().cipher_suites, Vec::<String>::new());
    }

    #[test]
    fn curves_are_refused() {
        let refused = read(|params| params.ecdh_curves = vec!["P-256".to_owned()])
            .0
            .unwrap_err();
        assert_eq!(refused.path, "ecdh_curves");
    }
}

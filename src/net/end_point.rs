//! What a certificate binds a SCRAM exchange to: its `tls-server-end-point` (RFC 5929 section 4).

use aws_lc_rs::digest::{Algorithm, SHA224, SHA256, SHA384, SHA512, digest};
use rustls_pki_types::CertificateDer;
use x509_cert::Certificate;
use x509_cert::der::{Decode as _, Reader as _, TagMode, TagNumber};
use x509_cert::spki::{AlgorithmIdentifierOwned, AlgorithmIdentifierRef, ObjectIdentifier};

/// The certificate's hash, by the hash of its signature's algorithm; SHA-256 in place of MD5 and SHA-1. `None` where
/// the algorithm has no hash of its own, as Ed25519: RFC 5929 defines no binding then.
pub fn end_point(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let read = Certificate::from_der(certificate).ok()?;
    let algorithm = hash(&read.signature_algorithm)?;
    Some(digest(algorithm, certificate).as_ref().to_vec())
}

fn hash(signature: &AlgorithmIdentifierOwned) -> Option<&'static Algorithm> {
    if signature.oid == RSASSA_PSS {
        return pss_hash(signature);
    }
    let known = HASHES.iter().find(|(oid, _)| *oid == signature.oid);
    known.map(|(_, hash)| *hash)
}

/// RSASSA-PSS names its hash in its parameters, and means SHA-1 where it does not (RFC 4055 section 3.1).
fn pss_hash(signature: &AlgorithmIdentifierOwned) -> Option<&'static Algorithm> {
    let named = signature.parameters.as_ref()?.sequence(|reader| {
        let named =
            reader.context_specific::<AlgorithmIdentifierRef<'_>>(TagNumber::N0, TagMode::Explicit)?;
        let named = named.map(|algorithm| algorithm.oid);
        reader.read_slice(reader.remaining_len())?; // mask and salt are of no matter here
        Ok(named)
    });
    match named.ok()? {
        None => Some(&SHA256),
        Some(named) => HASHES.iter().find(|(oid, _)| *oid == named).map(|(_, hash)| *hash),
    }
}

const RSASSA_PSS: ObjectIdentifier = oid("1.2.840.113549.1.1.10");

const HASHES: [(ObjectIdentifier, &Algorithm); 16] = [
    (oid("1.2.840.113549.1.1.4"), &SHA256),   // md5WithRSAEncryption
    (oid("1.2.840.113549.1.1.5"), &SHA256),   // sha1WithRSAEncryption
    (oid("1.2.840.113549.1.1.14"), &SHA224),  // sha224WithRSAEncryption
    (oid("1.2.840.113549.1.1.11"), &SHA256),  // sha256WithRSAEncryption
    (oid("1.2.840.113549.1.1.12"), &SHA384),  // sha384WithRSAEncryption
    (oid("1.2.840.113549.1.1.13"), &SHA512),  // sha512WithRSAEncryption
    (oid("1.2.840.10045.4.1"), &SHA256),      // ecdsa-with-SHA1
    (oid("1.2.840.10045.4.3.1"), &SHA224),    // ecdsa-with-SHA224
    (oid("1.2.840.10045.4.3.2"), &SHA256),    // ecdsa-with-SHA256
    (oid("1.2.840.10045.4.3.3"), &SHA384),    // ecdsa-with-SHA384
    (oid("1.2.840.10045.4.3.4"), &SHA512),    // ecdsa-with-SHA512
    (oid("1.3.14.3.2.26"), &SHA256),          // id-sha1
    (oid("2.16.840.1.101.3.4.2.4"), &SHA224), // id-sha224
    (oid("2.16.840.1.101.3.4.2.1"), &SHA256), // id-sha256
    (oid("2.16.840.1.101.3.4.2.2"), &SHA384), // id-sha384
    (oid("2.16.840.1.101.3.4.2.3"), &SHA512), // id-sha512
];

const fn oid(text: &str) -> ObjectIdentifier {
    ObjectIdentifier::new_unwrap(text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rustls_pki_types::pem::PemObject as _;

    /// Made by OpenSSL, one of each kind, in this order.
    const CERTIFICATES: &[u8] = include_bytes!("end_point/certificates.pem");

    #[test]
    fn the_hash_is_that_of_the_signature_and_never_a_weak_one() {
        let expected: [(&str, Option<&Algorithm>); 15] = [
            ("rsa-md5", Some(&SHA256)),
            ("rsa-sha1", Some(&SHA256)),
            ("rsa-sha224", Some(&SHA224)),
            ("rsa-sha256", Some(&SHA256)),
            ("rsa-sha384", Some(&SHA384)),
            ("rsa-sha512", Some(&SHA512)),
            ("ecdsa-sha1", Some(&SHA256)),
            ("ecdsa-sha224", Some(&SHA224)),
            ("ecdsa-sha256", Some(&SHA256)),
            ("ecdsa-sha384", Some(&SHA384)),
            ("ecdsa-sha512", Some(&SHA512)),
            ("pss-sha1", Some(&SHA256)),
            ("pss-sha256", Some(&SHA256)),
            ("pss-sha384", Some(&SHA384)),
            ("ed25519", None),
        ];
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(CERTIFICATES).map(Result::unwrap).collect();
        assert_eq!(certificates.len(), expected.len());
        for (certificate, (name, algorithm)) in certificates.iter().zip(expected) {
            let subject = Certificate::from_der(certificate).unwrap().tbs_certificate.subject.to_string();
            assert_eq!(subject, format!("CN={name}"));
            let expected = algorithm.map(|algorithm| digest(algorithm, certificate).as_ref().to_vec());
            assert_eq!(end_point(certificate), expected, "{name}");
        }
    }

    #[test]
    fn what_is_no_certificate_binds_nothing() {
        let whole = CertificateDer::pem_slice_iter(CERTIFICATES).next().unwrap().unwrap();
        for length in 0..whole.len() {
            assert_eq!(end_point(&CertificateDer::from(&whole[..length])), None);
        }
    }
}

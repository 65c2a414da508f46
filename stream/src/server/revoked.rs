//! Ends connections of members whose certificates were revoked.

use std::sync::Arc;

use api::grid::Revocations;
use image::Digest;
use tokio::sync::watch;
use x509_parser::prelude::GeneralName;

/// The name of the member in a certificate that TLS has already verified: the last part of its one URI.
pub(super) fn member_name(certificate: &[u8]) -> Option<String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => Some(uri.rsplit('/').next()?.to_owned()),
        _ => None,
    })
}

/// Ends when a certificate is among those that are refused: at once if it is already.
pub(super) async fn until(
    revoked: Option<watch::Receiver<Arc<Revocations>>>,
    name: Option<String>,
    holder: Digest,
) {
    if let (Some(mut revoked), Some(name)) = (revoked, name) {
        let refused = revoked.wait_for(|now| now.refuses(&name, &holder)).await.is_ok();
        // Who told of revocations is gone: no more come.
        if refused {
            return;
        }
    }
    std::future::pending().await
}

//! Chooses the certificate of a handshake by the name that the client asks for (SNI) and the keys that it accepts.

use std::collections::BTreeMap;
use std::sync::Arc;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::certificate_pair::{CertificatePair, KeyType};
use crate::error::{Error, Result};

/// Chooses among certificates. An exact name is better than a wildcard, and the first certificate serves clients that ask for no
/// name, or for one that no certificate has.
#[derive(Debug)]
pub(super) struct CertificateResolver {
    /// By name in lower case, `*.example.org` among them: indexes into `certified_keys`, in the order of preference.
    by_name: BTreeMap<String, Vec<usize>>,
    /// Those of the first certificate and of others with its first name.
    default: Vec<usize>,
    certified_keys: Vec<Arc<CertifiedKey>>,
}

impl CertificateResolver {
    /// Makes the signing keys of all pairs.
    pub(super) fn new(pairs: &[CertificatePair]) -> Result<CertificateResolver> {
        let certified_keys =
            pairs.iter().map(|pair| pair.certified_key().map(Arc::new)).collect::<Result<_>>()?;
        let by_name = pairs_by_name(pairs);
        let first_name = pairs.first().and_then(|pair| pair.chain.leaf.names.first());
        let default = first_name.and_then(|name| by_name.get(name)).filter(|all| all.contains(&0));
        let default = default.map_or_else(|| vec![0], Clone::clone);
        Ok(CertificateResolver { by_name, default, certified_keys })
    }

    /// Returns the certificates for a name.
    fn find(&self, name: Option<&str>) -> &[usize] {
        let found = name.and_then(|name| {
            let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
            self.by_name.get(&name).or_else(|| {
                // A wildcard stands for exactly one label.
                let (_, parent) = name.split_once('.')?;
                self.by_name.get(&format!("*.{parent}"))
            })
        });
        found.unwrap_or(&self.default)
    }
}

impl ResolvesServerCert for CertificateResolver {
    fn resolve(&self, client: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let candidates = self.find(client.server_name());
        let keys = || candidates.iter().filter_map(|index| self.certified_keys.get(*index));
        let schemes = client.signature_schemes();
        let accepted = keys().find(|key| key.key.choose_scheme(schemes).is_some());
        // If the client accepts none, rustls says so.
        accepted.or(keys().next()).map(Arc::clone)
    }
}

/// Maps each name to the pairs that have it: the shortest signatures first, then in the order of the configuration.
fn pairs_by_name(pairs: &[CertificatePair]) -> BTreeMap<String, Vec<usize>> {
    let mut by_name = BTreeMap::<String, Vec<usize>>::new();
    for (index, pair) in pairs.iter().enumerate() {
        for name in &pair.chain.leaf.names {
            let of_name = by_name.entry(name.clone()).or_default();
            if !of_name.contains(&index) {
                of_name.push(index);
            }
        }
    }
    by_name.values_mut().for_each(|all| all.sort_by_key(|index| (pairs[*index].key_type, *index)));
    by_name
}

/// Checks that each pair can be chosen. Warns if another one is chosen for some of its names.
///
/// # Errors
/// A pair has no other names than pairs before it with a key of the same type.
pub(super) fn check_names(pairs: &[CertificatePair], warnings: &mut Vec<String>) -> Result<()> {
    let is_rival = |one: &CertificatePair, name: &String, key_type: KeyType| {
        one.key_type == key_type && one.chain.leaf.names.contains(name)
    };
    for (index, pair) in pairs.iter().enumerate() {
        let names = &pair.chain.leaf.names;
        let rival_for =
            |name: &String| pairs[..index].iter().find(|one| is_rival(one, name, pair.key_type));
        let taken: Vec<_> =
            names.iter().filter_map(|name| Some((name, rival_for(name)?))).collect();
        let Some((name, rival)) = taken.first() else { continue };
        let (file, other) = (pair.file.display(), rival.file.display());
        if taken.len() == names.len() {
            return Err(Error::config(format!(
                "tls-cert = {file} would never be used: {other} is for {name}, too, with a key of the same type; leave one of \
                 them out"
            )));
        }
        warnings.push(format!(
            "tls-cert = {file} is not used for {name}: {other} is for this name, too"
        ));
    }
    Ok(())
}

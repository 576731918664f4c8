//! What is left to chance: nonces, seeds, and how far before its age a server is closed.

use std::time::Duration;

use super::Unclean;

/// Random bytes of the system's.
fn random<const N: usize>() -> Result<[u8; N], Unclean> {
    let mut random = [0; N];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| Unclean::Random)?;
    Ok(random)
}

/// What nobody can know before.
pub(super) fn nonce() -> Result<String, Unclean> {
    Ok(format!("{:032x}", u128::from_be_bytes(random()?)))
}

/// What `random()` begins with for the next client, who cannot foretell it: between -1 and 1.
pub(super) fn seed() -> Result<f64, Unclean> {
    Ok(f64::from(i32::from_be_bytes(random()?)) / f64::from(i32::MAX) * 0.999_999)
}

/// A tenth of the age, at most, is taken off at random: servers that were opened together are not closed together.
pub(super) fn spread(age: Duration) -> Result<Duration, Unclean> {
    let share = f64::from(u16::from_be_bytes(random()?)) / f64::from(u16::MAX);
    Ok(age.mul_f64(1.0 - 0.1 * share))
}

/// Between half of a pause and all of it.
pub fn jittered(pause: Duration) -> Duration {
    // Without any chance, it is the whole.
    let share = random().map_or(0, u16::from_be_bytes);
    pause.mul_f64(1.0 - 0.5 * f64::from(share) / f64::from(u16::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_spread_over_their_last_tenth() {
        let age = Duration::from_secs(1000);
        let ages: Vec<_> = (0..64).filter_map(|_| spread(age).ok()).collect();
        assert!(ages.iter().all(|spread| (Duration::from_secs(900)..=age).contains(spread)));
        assert!(ages.iter().any(|spread| *spread != ages[0]));
    }
}

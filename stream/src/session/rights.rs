//! What a connection's tickets allow.

use api::ticket::push_domain;
use api::{Grant, Ticket};
use image::seam::ImagePlan;
use image::{Digest, Error, Kind, Result};

/// The tickets that a connection has shown, one per right. Times are seconds since 1970.
#[derive(Debug)]
pub struct Rights {
    tickets: Vec<Ticket>,
    max: usize,
}

impl Rights {
    /// No rights yet; at most `max` are remembered.
    pub fn new(max: u32) -> Self {
        Self { tickets: Vec::new(), max: max as usize }
    }

    /// Adds what an opened ticket allows. A newer ticket for the same right renews it.
    pub fn grant(&mut self, ticket: Ticket, now: u64) -> Result<()> {
        if let Grant::Push { domain, .. } = ticket.grant {
            push_domain(domain)?;
        }
        if let Some(same) = self.tickets.iter_mut().find(|t| t.grant == ticket.grant) {
            if ticket.expires > same.expires {
                *same = ticket;
            }
            return Ok(());
        }
        self.tickets.retain(|t| t.session_good(now));
        if self.tickets.len() >= self.max {
            let why = format!("this connection holds {} rights already; open another", self.max);
            return Err(Error::new(Kind::Full, why));
        }
        self.tickets.push(ticket);
        Ok(())
    }

    /// Whether the image's manifest, tables and chunks may be read.
    pub fn pull(&self, image: &Digest, now: u64) -> Result<()> {
        let wanted = Grant::Pull { image: *image };
        self.find(|g| *g == wanted, now, || format!("image {image}"))
    }

    /// Whether an image may be pushed. Leaning on a parent needs the right to read that parent, by
    /// the ticket for the push or by one of its own.
    pub fn push(&self, plan: &ImagePlan, now: u64) -> Result<()> {
        let domain = plan.domain.0;
        let named = |g: &Grant| {
            matches!(g, Grant::Push { domain: d, parent }
            if *d == domain && (plan.parent.is_none() || *parent == plan.parent))
        };
        let what = || format!("push into domain {domain}");
        match (self.find(named, now, what), plan.parent) {
            (Err(_), Some(parent)) => {
                let any = |g: &Grant| matches!(g, Grant::Push { domain: d, .. } if *d == domain);
                self.find(any, now, what)?;
                self.pull(&parent, now).map_err(|e| e.at("parent of the push"))
            }
            (result, _) => result,
        }
    }

    fn find(
        &self,
        matches: impl Fn(&Grant) -> bool,
        now: u64,
        what: impl Fn() -> String,
    ) -> Result<()> {
        let mut found = self.tickets.iter().filter(|t| matches(&t.grant)).peekable();
        if found.peek().is_none() {
            let why = "no ticket for it was shown on this connection";
            return Err(Error::new(Kind::Denied, why).at(what()));
        }
        if found.any(|t| t.session_good(now)) {
            return Ok(());
        }
        let why = "the ticket and its grace have passed; get a new one from placement";
        Err(Error::new(Kind::Denied, why).at(what()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::ticket::{GRACE_SECS, LIFETIME_SECS, holder_of};
    use image::{Domain, Geometry};

    fn ticket(grant: Grant, now: u64) -> Ticket {
        Ticket::new(grant, holder_of(b"me"), now)
    }

    fn image(n: u8) -> Digest {
        Digest::of_chunk(&[n])
    }

    fn plan(parent: Option<Digest>) -> ImagePlan {
        let geometry = Geometry::new(1 << 20, 512, 18).unwrap();
        ImagePlan { domain: Domain::PUBLIC, geometry, parent }
    }

    #[test]
    fn a_right_is_for_one_image_and_lasts_through_the_grace() {
        let mut rights = Rights::new(4);
        rights.grant(ticket(Grant::Pull { image: image(1) }, 1000), 1000).unwrap();
        rights.pull(&image(1), 1000).unwrap();
        assert_eq!(rights.pull(&image(2), 1000).unwrap_err().kind(), Kind::Denied);
        let end = 1000 + LIFETIME_SECS + GRACE_SECS;
        rights.pull(&image(1), end).unwrap();
        assert_eq!(rights.pull(&image(1), end + 1).unwrap_err().kind(), Kind::Denied);
        rights.grant(ticket(Grant::Pull { image: image(1) }, 2000), 2000).unwrap();
        rights.pull(&image(1), end + 1).unwrap();
        rights.grant(ticket(Grant::Pull { image: image(1) }, 1500), 2000).unwrap();
        rights.pull(&image(1), 2000 + LIFETIME_SECS + GRACE_SECS).unwrap();
    }

    #[test]
    fn reading_is_no_right_to_push_nor_the_other_way_round() {
        let mut rights = Rights::new(4);
        rights.grant(ticket(Grant::Pull { image: image(1) }, 0), 0).unwrap();
        assert_eq!(rights.push(&plan(None), 0).unwrap_err().kind(), Kind::Denied);
        let parent = Some(image(2));
        rights.grant(ticket(Grant::Push { domain: 0, parent }, 0), 0).unwrap();
        rights.push(&plan(None), 0).unwrap();
        rights.push(&plan(parent), 0).unwrap();
        rights.push(&plan(Some(image(1))), 0).unwrap();
        assert_eq!(rights.push(&plan(Some(image(3))), 0).unwrap_err().kind(), Kind::Denied);
        assert_eq!(rights.pull(&image(2), 0).unwrap_err().kind(), Kind::Denied);
    }

    #[test]
    fn another_domain_is_refused_by_name() {
        let e = Rights::new(4).grant(ticket(Grant::Push { domain: 7, parent: None }, 0), 0);
        assert_eq!(e.unwrap_err().kind(), Kind::Unsupported);
    }

    #[test]
    fn the_number_of_rights_is_bounded_and_lapsed_ones_make_room() {
        let mut rights = Rights::new(2);
        for n in 0..2 {
            rights.grant(ticket(Grant::Pull { image: image(n) }, 0), 0).unwrap();
        }
        let third = ticket(Grant::Pull { image: image(2) }, 5000);
        assert_eq!(rights.grant(third.clone(), 0).unwrap_err().kind(), Kind::Full);
        rights.grant(third, 5000).unwrap();
    }
}

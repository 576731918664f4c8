//! How far it is: a bar on a terminal, lines elsewhere.

use std::cell::Cell;
use std::io::Write as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::architect::apply::Progress;
use crate::architect::migrate::Tell;
use crate::architect::migration::Step;

/// Shows steps.
pub(super) struct Bar {
    bar: ProgressBar,
    told: Cell<Instant>,
}

/// Where there is no terminal, a line of how far it is comes so often.
const LINE: Duration = Duration::from_secs(10);

impl Bar {
    pub(super) fn start() -> Self {
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} {prefix} {wide_msg}");
        let bar = ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_draw_target(ProgressDrawTarget::stderr());
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { bar, told: Cell::new(Instant::now()) }
    }

    fn line(&self, what: &str) {
        self.told.set(Instant::now());
        // Nobody reads it if standard error is closed.
        let _ = writeln!(std::io::stderr(), "{what}");
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

impl Progress for Bar {
    fn step(&self, number: usize, of: usize, step: &Step) {
        self.bar.set_length(of as u64);
        self.bar.set_position(number as u64);
        self.says(&format!("{} {}", step.id, step.title));
    }

    fn waits(&self, step: &Step, tries: u32, blockers: &[String]) {
        let who = if blockers.is_empty() { String::new() } else { format!(": {}", blockers.join("; ")) };
        self.says(&format!("{} waits for a lock, try {}{who}", step.id, tries + 1));
    }

    fn goes_on(&self, how_far: &str) {
        if !self.bar.is_hidden() {
            self.bar.set_prefix(how_far.to_owned());
        } else if self.told.get().elapsed() > LINE {
            self.line(how_far);
        }
    }
}

impl Tell for Bar {
    fn result(&self, line: &str) {
        self.bar.suspend(|| println!("{line}"));
    }

    fn says(&self, what: &str) {
        if self.bar.is_hidden() {
            return self.line(what);
        }
        self.bar.set_prefix("");
        self.bar.set_message(what.to_owned());
    }
}

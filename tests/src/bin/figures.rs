//! `figures NAME [--full]`: see `scripts/figures.sh`.

use anyhow::{Result, bail};

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match &words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [name] => dfs_tests::figures::measure(name, false),
        [name, "--full"] => dfs_tests::figures::measure(name, true),
        _ => bail!("figures NAME [--full]"),
    }
}

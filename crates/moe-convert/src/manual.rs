//! Man pages and shell completions, made from the definitions of the command line.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};
use moe_checkpoint::{
    CONFIG_FILE, Error, FileKind, Kind, RECEIPT_FILE, Result, Seal, check_file, read_text,
    write_files,
};

use crate::cli::Cli;

/// The completion script for `shell`.
pub fn completions(shell: Shell) -> String {
    let mut script = Vec::new();
    let mut command = Cli::command();
    let name = command.get_name().to_owned();
    clap_complete::generate(shell, &mut command, &name, &mut script);
    // For bash, in one of two places, clap_complete takes the hyphen of the program's name for the
    // start of a subcommand.
    let program = name.replace('-', "__");
    String::from_utf8_lossy(&script).replace(&name.replace('-', "__subcmd__"), &program)
}

/// A page of this program in any version, unedited.
const PAGE: FileKind = FileKind {
    content: "a man page as moe-convert wrote it",
    holds: |path| {
        let page = read_text(path, MAX_PAGE_BYTES).unwrap_or_default();
        Seal::ROFF.is_intact(&page) && page.contains("\n.TH moe-convert")
    },
    is_text: false,
};
const MAX_PAGE_BYTES: u64 = 1 << 20;

/// Writes a page for the program and one for each command to `dir`. Earlier pages are replaced if
/// `overwrite` is set.
///
/// # Errors
/// If `dir` can't be made or written to, or something else has the name of a page; then none is
/// written.
pub fn write(dir: &Path, overwrite: bool) -> Result<Vec<PathBuf>> {
    check_directory(dir)?;
    fs::create_dir_all(dir).map_err(|e| Error::io("cannot make this directory", dir, e))?;
    let mut program = Cli::command().disable_help_subcommand(true);
    program.build();
    let commands = std::iter::once(&program).chain(program.get_subcommands());
    let mut pages = Vec::new();
    for command in commands {
        let man =
            Man::new(command.clone()).source(concat!("moe-convert ", env!("CARGO_PKG_VERSION")));
        let path = dir.join(man.get_filename());
        let found = check_file(&path, &PAGE, overwrite)?;
        let page =
            page(&man, command).map_err(|e| Error::io("cannot write this page", &path, e))?;
        pages.push((path, found, page));
    }
    write_files(pages.iter().map(|(path, found, page)| (path.as_path(), *found, page.as_slice())))?;
    Ok(pages.into_iter().map(|(path, ..)| path).collect())
}

/// Refuses a path that can't be a directory of man pages.
fn check_directory(dir: &Path) -> Result<()> {
    for name in [CONFIG_FILE, RECEIPT_FILE] {
        if dir.join(name).symlink_metadata().is_ok() {
            return Err(Error::new(
                Kind::Usage,
                "this directory holds a model, in which man pages have no place",
            )
            .file(dir.join(name))
            .remedy("give a directory of man pages, such as ~/.local/share/man/man1"));
        }
    }
    if dir.exists() && !dir.is_dir() {
        return Err(Error::new(Kind::Usage, "this is a file, and man pages go to a directory")
            .file(dir)
            .remedy("give a directory, such as ~/.local/share/man/man1"));
    }
    Ok(())
}

/// The page that `clap_mangen` renders, with examples and notes in the form of man pages.
fn page(man: &Man, command: &Command) -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    if let Some(text) = command.get_after_help() {
        closing(&text.to_string()).to_writer(&mut page)?;
    }
    let page = String::from_utf8(page).map_err(io::Error::other)?;
    Ok(Seal::ROFF.close(&page).into_bytes())
}

/// The text after the options: a block of examples, and paragraphs.
fn closing(text: &str) -> Roff {
    let mut roff = Roff::new();
    for block in text.split("\n\n") {
        if let Some(examples) = block.strip_prefix("Example") {
            roff.control("SH", ["EXAMPLES"]).control("nf", []);
            examples.lines().skip(1).for_each(|line| {
                roff.text([roman(line.strip_prefix("  ").unwrap_or(line))]);
            });
            roff.control("fi", []);
        } else {
            roff.control("SH", ["NOTES"]);
            block.lines().for_each(|line| {
                roff.text([roman(line)]).control("br", []);
            });
        }
    }
    roff
}

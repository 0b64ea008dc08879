//! A compiler: many small reads, temporary files, output that is written in pieces and then executed from the mount.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Workload;
use crate::program;

const DEADLINE: Duration = Duration::from_secs(120);
const UNITS: usize = 12;

/// Compiles a C program of several units into a static library and a program, and runs it.
pub struct Compiler;

impl Workload for Compiler {
    fn name(&self) -> &'static str {
        "compiler"
    }

    fn write(&mut self, directory: &Path) -> Result<()> {
        program::need("gcc")?;
        let mut main = String::from("#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n");
        let mut sum = String::from("0");
        let mut objects = Vec::new();
        for unit in 0..UNITS {
            std::fs::write(directory.join(format!("unit{unit}.h")), format!("long unit{unit}(long);\n"))?;
            let source = format!(
                "#include \"unit{unit}.h\"\n#include <math.h>\nstatic const long table[4096] = {{ [17] = {unit} }};\n\
                 long unit{unit}(long x) {{ return table[17] * x; }}\n"
            );
            std::fs::write(directory.join(format!("unit{unit}.c")), source)?;
            main.push_str(&format!("#include \"unit{unit}.h\"\n"));
            sum.push_str(&format!(" + unit{unit}(2)"));
            objects.push(format!("unit{unit}.o"));
            program::ok(directory, "gcc", ["-O1", "-g", "-c", &format!("unit{unit}.c")], DEADLINE)?;
        }
        std::fs::write(
            directory.join("main.c"),
            format!("{main}int main(void) {{ printf(\"%ld\\n\", {sum}); return 0; }}\n"),
        )?;
        program::ok(
            directory,
            "ar",
            ["rcs", "libunits.a"].into_iter().chain(objects.iter().map(String::as_str)),
            DEADLINE,
        )?;
        program::ok(directory, "gcc", ["-O1", "-g", "-o", "program", "main.c", "libunits.a"], DEADLINE)?;
        Ok(())
    }

    fn verify(&self, directory: &Path) -> Result<()> {
        let program = directory.join("program");
        let said = program::ok(directory, program.to_str().context("UTF-8")?, [""; 0], DEADLINE)?;
        let expected = UNITS * (UNITS - 1);
        ensure!(said.trim() == expected.to_string(), "the program said {said:?}, {expected} was expected");
        Ok(())
    }
}

#!/bin/sh
# cargo's RUSTC_WORKSPACE_WRAPPER: puts LLVM's coverage counters, which libFuzzer reads, into this crate's unit tests and into nothing
# else. So the crates it depends on are those that the other tests were built with, and no compiler but the stable one is needed.
compiler=$1
shift
case " $* " in
  *' --crate-name hostler '*' --test '*)
    exec "$compiler" "$@" -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
      -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
      -Cllvm-args=-sanitizer-coverage-trace-compares ;;
esac
exec "$compiler" "$@"

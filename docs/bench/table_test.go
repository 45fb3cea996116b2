package main

import (
	"strings"
	"testing"
)

// What go test writes comes out as rows, each target with whether it was met.
func TestTable(t *testing.T) {
	rows, err := parse(strings.NewReader(`goos: linux
pkg: example.net/content
BenchmarkTransferBig-2     1   0 ns/op   2.0 bare-s   0.6 of-bare(>=0.68)   500.2 ours-MiB/s   3.1 ours-cpu-s  5.25 x-bitswap(>=3.5)
BenchmarkImport/gzip-16
    import_test.go:1: layer of 3 MiB
      3   1234567 ns/op   1.5 x-floor(<=1.5)
BenchmarkKilled/80+8-2   1   1 repeated-%(<1)   3 idle-MiB
Benchmarks are read by people too
PASS
ok   example.net/content 3.2s
`))
	if err != nil {
		t.Fatal(err)
	}
	_, got, _ := strings.Cut(table(rows), "--- |\n")
	want := `| TransferBig | ours 500 MiB/s, 3.1 cpu-s; bare 2 s | 0.6 of-bare | >=0.68 | no |
|  |  | 5.25 x-bitswap | >=3.5 | yes |
| Import/gzip | 1.235ms each | 1.5 x-floor | <=1.5 | yes |
| Killed/80+8 | 3 idle-MiB | 1 repeated-% | <1 | no |
`
	if got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

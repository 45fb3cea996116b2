//go:build payload

package sandbox

import (
	_ "embed" // the runtime travels inside the binary
	"strings"
)

//go:embed payload/runsc-linux-amd64.zst
var runscZst []byte

//go:embed payload/runsc-linux-amd64.sha256
var runscSum string

//go:embed payload/forwarder-linux-amd64.zst
var forwarderZst []byte

//go:embed payload/forwarder-linux-amd64.sha256
var forwarderSum string

func embedded() packed { return packed{zst: runscZst, sha256: strings.TrimSpace(runscSum)} }

func embeddedForwarder() packed {
	return packed{zst: forwarderZst, sha256: strings.TrimSpace(forwarderSum)}
}

//go:build !payload || !linux || !(amd64 || arm64)

package sandbox

// embedded is empty in a build without the tag "payload".
func embedded() packed { return packed{} }

func embeddedForwarder() packed { return packed{} }

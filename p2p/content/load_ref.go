package content

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

// ErrNoImage says that there is no image of that name where it was looked for.
var ErrNoImage = errors.New("no such image")

// Codes of a LoadError, stable words for scripts.
const (
	CodeBadRef      = "bad_ref"
	CodeNoImage     = "no_image"
	CodeNoPlatform  = "no_platform"
	CodeDenied      = "denied"
	CodeUnreachable = "unreachable"
	CodeNoStore     = "no_store"
)

// LoadError is why an image could not be had, with what to do about it.
type LoadError struct {
	Code      string
	Remedy    string // what to do next
	Retryable bool
	Err       error
}

// Error implements error.
func (e *LoadError) Error() string { return e.Err.Error() }

// Unwrap is the cause.
func (e *LoadError) Unwrap() error { return e.Err }

func loadErr(code, remedy, format string, args ...any) *LoadError {
	return &LoadError{Code: code, Remedy: remedy, Err: fmt.Errorf(format, args...)}
}

// ImageForms says, for people, how an image that is not loaded can be named.
const ImageForms = "docker-archive:FILE (docker save), oci:FOLDER or oci-archive:FILE, a folder with a root file system, " +
	"docker://NAME (a registry), docker-daemon:NAME, containerd:NAME"

// Forms of a reference.
const (
	formAuto       = ""
	formArchive    = "docker-archive"
	formOCI        = "oci"
	formOCIArchive = "oci-archive"
	formRootfs     = "rootfs"
	formRegistry   = "docker"
	formPlainHTTP  = "docker+http"
	formDaemon     = "docker-daemon"
	formContainerd = "containerd"
)

var forms = []struct {
	form, prefix string
	local        bool
}{
	{formArchive, "docker-archive:", true},
	{formOCIArchive, "oci-archive:", true},
	{formOCI, "oci:", true},
	{formRootfs, "rootfs:", true},
	{formRegistry, "docker://", false},
	{formPlainHTTP, "docker+http://", false},
	{formDaemon, "docker-daemon:", false},
	{formContainerd, "containerd:", false},
}

// CutImageForm takes the word that names the form off a reference, like "oci:"
// or "docker://"; prefix is empty where there is none. local says that the rest
// is a path, maybe with ":NAME" after it, and not a name.
func CutImageForm(ref string) (prefix, rest string, local bool) {
	for _, f := range forms {
		if rest, ok := strings.CutPrefix(ref, f.prefix); ok {
			return f.prefix, rest, f.local
		}
	}
	return "", ref, true
}

// imageRef is a reference taken apart.
type imageRef struct {
	form string
	path string // or the name in a registry or a store
	pick string // one of several images of an archive
}

// splitRef takes a reference apart; a file that exists is never cut at a colon.
func splitRef(ref string) (imageRef, error) {
	prefix, rest, local := CutImageForm(ref)
	r := imageRef{path: rest}
	for _, f := range forms {
		if f.prefix == prefix {
			r.form = f.form
		}
	}
	switch {
	case rest == "":
		return r, loadErr(CodeBadRef, "name it in one of these forms: "+ImageForms, "%w: nothing follows %q", ErrNoImage, prefix)
	case prefix == "" && strings.Contains(ref, "://"):
		return r, loadErr(CodeBadRef, "name it in one of these forms: "+ImageForms, "%w: %.200q begins like no form that is known", ErrNoImage, ref)
	case !local || r.form == formAuto:
		return r, nil
	}
	if _, err := os.Lstat(rest); err == nil {
		return r, nil
	}
	// The name may hold colons itself: the longest file that exists wins.
	for i := len(rest) - 1; i > 0; i-- {
		if rest[i] != ':' {
			continue
		}
		if _, err := os.Lstat(rest[:i]); err == nil {
			r.path, r.pick = rest[:i], rest[i+1:]
			return r, nil
		}
	}
	return r, nil
}

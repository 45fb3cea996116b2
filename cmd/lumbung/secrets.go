package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/node/client"
	"github.com/lumbung-net/lumbung/protocol"
)

// parseSecret reads NAME or NAME=FILE. A value that somebody writes there is on
// the process list already; what is said of it must not spread it further.
func parseSecret(text string) (job.SecretSpec, error) {
	name, file, given := strings.Cut(text, "=")
	if err := protocol.SecretName(name); err != nil {
		return job.SecretSpec{}, usageErrf("--secret: want NAME or NAME=FILE: %w", err)
	}
	if given && file == "" {
		return job.SecretSpec{}, usageErrf("--secret %s=: want the file that the value is in, or - for stdin", name)
	}
	return job.SecretSpec{Name: name, File: file}, nil
}

// readSecrets gives a request the values of its secrets, from where the job says.
func (a *app) readSecrets(req *client.SubmitRequest) error {
	if len(req.Spec.Secrets) == 0 {
		return nil
	}
	req.Secrets = protocol.Secrets{}
	stdin := ""
	for _, s := range req.Spec.Secrets {
		if s.File == "-" && stdin != "" {
			return usageErrf("the secrets %s and %s both come from stdin, which has one value", stdin, s.Name)
		}
		if s.File == "-" {
			stdin = s.Name
		}
		value, err := a.readSecret(s, req.Dir)
		if err != nil {
			return err
		}
		req.Secrets[s.Name] = value
	}
	if err := req.Secrets.Validate(); err != nil {
		return usageErrf("%w", err)
	}
	return nil
}

func (a *app) readSecret(s job.SecretSpec, dir string) ([]byte, error) {
	switch s.File {
	case "":
		value, ok := os.LookupEnv(s.Name)
		if !ok {
			return nil, &usageError{
				err:    fmt.Errorf("the secret %s: there is no environment variable of that name", s.Name),
				remedy: fmt.Sprintf("export %s, or name the file that the value is in: --secret %s=FILE", s.Name, s.Name),
			}
		}
		return []byte(value), nil
	case "-":
		if a.inTTY { // it would show what is typed
			return nil, usageErrf("the secret %s: - is stdin, which is a terminal: send the value there, as in `pass show NAME | lumbung run …`", s.Name)
		}
		return takeSecret(s.Name, "stdin", a.in)
	}
	file := s.File
	if !filepath.IsAbs(file) {
		file = filepath.Join(dir, file)
	}
	f, err := os.Open(file)
	if err != nil {
		var cause *os.PathError
		if errors.As(err, &cause) {
			err = cause.Err // without what was taken for a path
		}
		return nil, &usageError{
			err:    fmt.Errorf("the secret %s: open the file that its value is in: %w", s.Name, err),
			remedy: "name a file, relative to the job's folder; the value itself never stands on the command line or in a job file",
		}
	}
	defer func() { _ = f.Close() }()
	return takeSecret(s.Name, "its file", f)
}

// takeSecret reads a value as it is, a line's end too.
func takeSecret(name, where string, r io.Reader) ([]byte, error) {
	value, err := io.ReadAll(io.LimitReader(r, protocol.MaxSecretBytes+1))
	if err != nil {
		return nil, fmt.Errorf("the secret %s: read %s: %w", name, where, err)
	}
	if len(value) > protocol.MaxSecretBytes {
		return nil, usageErrf("the secret %s: %s has over %d bytes, the most for all of a job's secrets", name, where, protocol.MaxSecretBytes)
	}
	return value, nil
}

package job

import (
	"errors"
	"fmt"
	"strings"
)

// splitWords splits a command line as a shell does, without expanding
// anything: quotes and backslashes only. A sign that a shell would act on is an
// error, for nothing here would.
func splitWords(s string) ([]string, error) {
	var words []string
	var word strings.Builder
	in := false // a word has begun
	var quote byte
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case quote == '\'' || quote == '"':
			switch {
			case c == quote:
				quote = 0
			case quote == '"' && c == '\\' && i+1 < len(s) && strings.IndexByte("\"\\$`", s[i+1]) >= 0:
				i++
				word.WriteByte(s[i])
			default:
				word.WriteByte(c)
			}
		case c == '\'' || c == '"':
			quote, in = c, true
		case c == '\\' && i+1 < len(s):
			i++
			in = true
			word.WriteByte(s[i])
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			if in {
				words = append(words, word.String())
				word.Reset()
				in = false
			}
		case strings.IndexByte("|&;<>`", c) >= 0:
			return nil, fmt.Errorf("%q is a sign for a shell, and none runs; write [sh, -c, \"…\"], or quote it", string(c))
		default:
			in = true
			word.WriteByte(c)
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("the quote %c is not closed", quote)
	}
	if in {
		words = append(words, word.String())
	}
	if len(words) == 0 {
		return nil, errors.New("it is empty; leave it out to run what the image names")
	}
	return words, nil
}

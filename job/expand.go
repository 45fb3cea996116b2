package job

import (
	"fmt"
	"maps"
	"strconv"
	"strings"
)

// What a task is told of itself, in its environment and, as ${NAME}, in its
// command and the values of its environment.
const (
	varIndex = "LUMBUNG_INDEX" // number of the task, from 0
	varFirst = "LUMBUNG_FIRST" // first number of its part of the range
	varLast  = "LUMBUNG_LAST"
	varJob   = "LUMBUNG_JOB"

	varPrefix = "LUMBUNG_"
)

// Expand is the command and the environment of one task. ${LUMBUNG_INDEX},
// ${LUMBUNG_FIRST}, ${LUMBUNG_LAST} (of arrays alone) and ${LUMBUNG_JOB} are
// replaced and $$ becomes $; any other ${NAME} and $NAME is left for the program
// inside. ErrSpec for a ${LUMBUNG_…} that there is not.
func Expand(s Spec, jobID string, task int) (command []string, env map[string]string, err error) {
	vars := taskVars(s, jobID, task)
	for i, arg := range s.Command {
		word, err := substitute(arg, vars)
		if err != nil {
			return nil, nil, specErr("command[%d]: %w", i, err)
		}
		command = append(command, word)
	}
	env = maps.Clone(vars)
	for name, value := range s.Env {
		if strings.HasPrefix(name, varPrefix) {
			return nil, nil, specErr("env.%s: names that begin with %s are lumbung's own; choose another", name, varPrefix)
		}
		if env[name], err = substitute(value, vars); err != nil {
			return nil, nil, specErr("env.%s: %w", name, err)
		}
	}
	return command, env, nil
}

func taskVars(s Spec, jobID string, task int) map[string]string {
	vars := map[string]string{varJob: jobID}
	if s.Array != nil {
		first, last := s.Range(task)
		vars[varIndex], vars[varFirst], vars[varLast] = strconv.Itoa(task), strconv.Itoa(first), strconv.Itoa(last)
	}
	return vars
}

// substitute replaces the variables of one word.
func substitute(word string, vars map[string]string) (string, error) {
	if !strings.Contains(word, "$") {
		return word, nil
	}
	var b strings.Builder
	for {
		i := strings.IndexByte(word, '$')
		if i < 0 {
			b.WriteString(word)
			return b.String(), nil
		}
		b.WriteString(word[:i])
		word = word[i:]
		if strings.HasPrefix(word, "$$") {
			b.WriteByte('$')
			word = word[2:]
			continue
		}
		name, end := braced(word)
		if !strings.HasPrefix(name, varPrefix) {
			b.WriteByte('$')
			word = word[1:]
			continue
		}
		value, ok := vars[name]
		if !ok {
			return "", unknownVar(name, vars)
		}
		b.WriteString(value)
		word = word[end:]
	}
}

// braced is the name of a word that begins with ${NAME}, and where it ends.
func braced(word string) (name string, end int) {
	if !strings.HasPrefix(word, "${") {
		return "", 0
	}
	i := strings.IndexByte(word, '}')
	if i < 0 {
		return "", 0
	}
	return word[2:i], i + 1
}

func unknownVar(name string, vars map[string]string) error {
	if name == varIndex || name == varFirst || name == varLast {
		return fmt.Errorf("${%s} is of arrays alone; give the job an array, or write $${%s} to keep it as it is", name, name)
	}
	known := []string{varIndex, varFirst, varLast, varJob}
	if len(vars) == 1 {
		known = []string{varJob}
	}
	return fmt.Errorf("${%.80s} is not known; there is %s, and $${ keeps a ${ as it is", name, strings.Join(known, ", "))
}

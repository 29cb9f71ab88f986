"""From a method's settings to an arm that is ready to be trained."""

from dataclasses import replace

from l2t_ray.assembly.teachers import MakeTeacher
from l2t_ray.methods.parts import Parts, check_rows_are_examples
from l2t_ray.methods.phases import PhasedData, Phases
from l2t_ray.methods.settings import MethodSettings
from l2t_ray.own_code import own_code
from l2t_ray.training.loop import Arm
from l2t_ray.training.probe import Probe


def build_arm(method: MethodSettings, parts: Parts, make_teacher: MakeTeacher, probe: Probe | None = None) -> Arm:
    """A method ready to be trained, on its data, in its phases.

    Args:
        probe: measures what the arm makes of wrong labels.

    Raises:
        UserError: if the method cannot be built on these data.
    """
    if method.goes_by_images:
        check_rows_are_examples(parts, method.name, "method=cross_entropy")
    with own_code(f"method {method.name!r}", method):
        teacher = make_teacher(method, parts.loss_facts) if method.has_teacher else None
        phases = method.phases(replace(parts, teacher=teacher))
    if len(phases) == 1:
        return Arm(method.arm, phases[0].method, teacher, phases[0].data, probe)
    return Arm(method.arm, Phases(phases), teacher, PhasedData(phases), probe)

"""Cinder's API, scheduler and volume service in one process: `cinder_all.py --config-file cinder.conf`.

Cinder has no such program any more. In one process the services need no message broker: oslo.messaging's fake transport
is enough. Run by the Python of an environment that has Cinder, which is not this project's own.
"""

from cinder import monkey_patch

monkey_patch.patch()  # before all else is imported

import shlex
import sys

import os_brick
from cinder import coordination, objects, rpc, service, utils, version
from cinder.common import config, constants
from oslo_config import cfg
from oslo_log import log as logging
from oslo_privsep import priv_context
from oslo_service import service as oservice

CONF = cfg.CONF


def main() -> None:
    """Serve until a signal comes."""
    CONF.register_opt(cfg.StrOpt("cluster", default=None))
    objects.register_all()
    CONF(sys.argv[1:], project="cinder", version=version.version_string())
    config.set_middleware_defaults()
    logging.setup(CONF, "cinder")
    priv_context.init(root_helper=shlex.split(utils.get_root_helper()))
    os_brick.setup(CONF)
    coordination.COORDINATOR.start()
    rpc.init(CONF)
    launcher = oservice.ServiceLauncher(CONF, restart_method="mutate")
    for backend in CONF.enabled_backends:
        CONF.register_opt(cfg.StrOpt("backend_host"), group=backend)
        host = f"{CONF[backend].backend_host or CONF.host}@{backend}"
        launcher.launch_service(
            service.Service.create(host=host, service_name=backend, binary=constants.VOLUME_BINARY, coordination=True)
        )
    launcher.launch_service(service.Service.create(binary=constants.SCHEDULER_BINARY))
    launcher.launch_service(service.WSGIService("osapi_volume"))
    launcher.wait()


main()

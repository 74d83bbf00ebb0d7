// The job of piscina.js, which does nothing.
'use strict';
module.exports = () => 0;
